#include "extent/nbd_reply.h"

#include <fmt/format.h>

#include <algorithm>

namespace qchain {

void ReadReply::add_data(std::uint64_t offset, std::uint64_t length) {
  if (!chunks_.empty() && chunks_.back().offset + chunks_.back().length == offset) {
    chunks_.back().length += length;
  } else if (length > 0 && chunks_.size() <= kMaxChunks) {
    chunks_.push_back({offset, length});
  }
}

void ReadReply::add_hole(std::uint64_t offset, std::uint64_t length) {
  if (holes_ == Holes::AreRefused) reason_ = "the server sent a hole although data was requested (DF)";
  add_data(offset, length);
}

bool ReadReply::is_complete() const {
  if (reason_ != nullptr || chunks_.size() > kMaxChunks) return false;
  std::vector<Chunk> sorted = chunks_;
  std::ranges::sort(sorted, {}, &Chunk::offset);
  std::uint64_t at = range_.begin.bytes();
  for (const Chunk& chunk : sorted) {
    if (chunk.offset != at || chunk.length > range_.end.bytes() - at) return false;
    at += chunk.length;
  }
  return at == range_.end.bytes();
}

void StatusReply::add(const char* context, std::span<const std::uint32_t> entries) {
  const auto known = std::ranges::find(contexts_, context);
  if (known == contexts_.end()) return;  // not requested
  std::vector<ContextExtent>& list = extents_[static_cast<std::size_t>(known - contexts_.begin())];
  if (!list.empty()) reason_ = "the same context twice";
  std::uint64_t covered = 0;
  // A short answer is valid, so a long one may be cut.
  for (std::size_t i = 0; i + 1 < entries.size() && covered < limit_ && list.size() < kMaxExtents; i += 2) {
    if (entries[i] == 0) {
      reason_ = "an extent of length 0";
      return;
    }
    const std::uint64_t length = std::min<std::uint64_t>(entries[i], limit_ - covered);
    list.push_back({length, entries[i + 1]});
    covered += length;
  }
}

std::string StatusReply::reason() const {
  if (reason_ != nullptr) return fmt::format("the server sent {}", reason_);
  for (std::size_t i = 0; i < contexts_.size(); ++i) {
    if (extents_[i].empty()) return fmt::format("the server sent nothing for {}", contexts_[i]);
  }
  return {};
}

}  // namespace qchain
