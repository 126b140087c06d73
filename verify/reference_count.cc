#include "verify/reference_count.h"

#include <algorithm>
#include <array>
#include <bit>

namespace qchain {

namespace {

constexpr std::array<const char*, kStructures> kNames{
    "header",          "L1 table",       "snapshot's L1 table", "L2 table",       "data",
    "compressed data", "refcount table", "refcount block",      "snapshot table", "bitmap directory",
    "bitmap table",    "bitmap",         "LUKS header",
};

constexpr std::uint32_t bit(Structure structure) {
  return std::uint32_t{1} << static_cast<unsigned>(structure);
}
constexpr std::uint32_t kUses = (std::uint32_t{1} << kStructures) - 1;
constexpr std::uint32_t kShareable =
    bit(Structure::Data) | bit(Structure::Compressed) | bit(Structure::L2Table);

}  // namespace

const char* to_string(Structure structure) noexcept { return kNames[static_cast<std::size_t>(structure)]; }

bool ClusterUse::is_data_and_streams() const {
  return (bits_ & kUses) == (bit(Structure::Data) | bit(Structure::Compressed));
}

bool ClusterUse::is_overlap() const {
  const std::uint32_t uses = bits_ & kUses;
  if (std::popcount(uses) > 1) return true;
  return count() > 1 && (uses & kShareable) == 0;
}

std::string ClusterUse::users() const {
  std::string names;
  for (unsigned i = 0; i < kStructures; ++i) {
    if (!used_as(static_cast<Structure>(i))) continue;
    if (!names.empty()) names += " and ";
    names += kNames[i];
  }
  return names;
}

void ClusterUse::add(Structure structure, std::uint32_t references, CopiedBit copied) {
  const std::uint32_t total = count() + std::min(references, kMaxCount);
  bits_ = (bits_ & ((std::uint32_t{1} << kCountShift) - 1)) | bit(structure) |
          std::min(total, kMaxCount) << kCountShift;
  if (copied == CopiedBit::Set) bits_ |= kSet;
  if (copied == CopiedBit::Clear) bits_ |= kClear;
}

ReferenceCount::Chunk* ReferenceCount::chunk_to_count(std::uint64_t index) {
  if (index == recent_index_) return recent_;
  recent_index_ = index;
  recent_ = nullptr;
  const auto [found, is_new] = chunks_.try_emplace(index);
  recent_ = &found->second;
  if (!is_new) return recent_;
  if (chunks_.size() > max_chunks_) {
    const auto last = std::prev(chunks_.end());
    end_ = last->first * kChunkClusters;
    const bool is_this = last == found;
    chunks_.erase(last);
    if (is_this) {
      recent_index_ = kNoEnd;
      return nullptr;
    }
  }
  recent_->resize(kChunkClusters);
  return recent_;
}

void ReferenceCount::add(std::uint64_t first, std::uint64_t last, Structure structure,
                         std::uint32_t references, CopiedBit copied) {
  for (std::uint64_t cluster = std::max(first, begin_); cluster <= last && cluster < end_; ++cluster) {
    Chunk* const chunk = chunk_to_count(cluster / kChunkClusters);
    if (chunk == nullptr) return;
    (*chunk)[cluster % kChunkClusters].add(structure, references, copied);
  }
}

bool ReferenceCount::advance() {
  if (end_ == kNoEnd) return false;
  begin_ = end_;
  end_ = kNoEnd;
  chunks_.clear();
  recent_index_ = kNoEnd;
  recent_ = nullptr;
  return true;
}

const ReferenceCount::Chunk* ReferenceCount::chunk(std::uint64_t index) const {
  const auto found = chunks_.find(index);
  return found != chunks_.end() ? &found->second : nullptr;
}

}  // namespace qchain
