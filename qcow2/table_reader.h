#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "extent/file.h"
#include "extent/range.h"

namespace qchain {

/// Reads a table of entries of variable length, from its beginning to its end, through a small buffer: never
/// allocates what an entry claims to need before it was read.
class TableReader {
 public:
  /// `length` bytes at `begin`; the file may end before that.
  TableReader(const File& file, HostOffset begin, std::uint64_t length);

  /// Bytes from the beginning of the table on.
  std::uint64_t position() const noexcept { return position_; }
  HostOffset at() const { return begin_ + position_; }
  bool at_end() const noexcept { return position_ == length_; }

  /// The next `count` bytes, at most kMaxBytes; valid until the next call. If the table or the file ends
  /// before: fewer, and nothing is consumed. Throws Error (Io).
  std::span<const std::byte> take(std::size_t count);
  /// The same as text, of which no more than kMaxText bytes are kept; false if there are fewer than `count`.
  bool take_text(std::size_t count, std::string& text);
  /// Skips `count` bytes, even past the end of the file; false if that is past the end of the table.
  bool skip(std::uint64_t count);

  static constexpr std::size_t kMaxBytes = std::size_t{64} << 10;
  static constexpr std::size_t kMaxText = 1024;  // QEMU's names are shorter

 private:
  const File& file_;
  HostOffset begin_;
  std::uint64_t length_;
  std::uint64_t position_ = 0;
  std::uint64_t held_from_ = 0;  // position of the first byte of buffer_
  std::vector<std::byte> buffer_;
};

}  // namespace qchain
