#include "qcow2/table_reader.h"

#include <algorithm>

namespace qchain {

TableReader::TableReader(const File& file, HostOffset begin, std::uint64_t length)
    : file_(file), begin_(begin), length_(length) {}

std::span<const std::byte> TableReader::take(std::size_t count) {
  const std::uint64_t wanted = std::min<std::uint64_t>(count, length_ - position_);
  const bool held = position_ >= held_from_ && position_ - held_from_ <= buffer_.size() &&
                    wanted <= buffer_.size() - (position_ - held_from_);
  if (!held) {
    buffer_.resize(std::min<std::uint64_t>(kMaxBytes, length_ - position_));
    buffer_.resize(file_.read_at_most(at(), buffer_));
    held_from_ = position_;
  }
  const std::span<const std::byte> rest = std::span(buffer_).subspan(position_ - held_from_);
  if (rest.size() < count) return rest;
  position_ += count;
  return rest.first(count);
}

bool TableReader::take_text(std::size_t count, std::string& text) {
  const std::span<const std::byte> bytes = take(count);
  if (bytes.size() < count) return false;
  text.assign(reinterpret_cast<const char*>(bytes.data()), std::min(count, kMaxText));
  return true;
}

bool TableReader::skip(std::uint64_t count) {
  if (count > length_ - position_) return false;
  position_ += count;
  return true;
}

}  // namespace qchain
