// What is not as it should be on a disk: damage, differences, and what was read back wrongly are one type.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "extent/error.h"
#include "extent/export.h"
#include "extent/kind.h"
#include "extent/range.h"

namespace qchain {

/// Why bytes are not what they should be.
enum class Cause : std::uint8_t {
  Rotted,   ///< The layer's own bytes are not what was written.
  Missed,   ///< The layer's own bytes are right, and so are those below: the bitmap missed a change.
  Below,    ///< The layer's own bytes are right, and a layer below is damaged there.
  Changed,  ///< The other side holds something else than what was recorded here.
  Unknown,  ///< No manifest tells which side is right.
  Moving,   ///< The live side read differently a second time.
};
inline constexpr std::size_t kCauses = 6;
/// "rotted", "missed by the dirty bitmap", "damaged beneath", "changed", "unknown", "moving".
QCHAIN_API const char* to_string(Cause cause) noexcept;

/// Where the bytes of a block come from.
struct BlockSource {
  std::size_t layer = 0;  ///< 0: the top.
  Kind kind = Kind::Inherit;
  std::optional<std::uint64_t> host_offset;  ///< In the layer's file; nullopt: zeros that are stored nowhere.
  bool is_compressed = false;

  friend bool operator==(const BlockSource&, const BlockSource&) = default;
};

/// A range where bytes are not what they should be.
struct Discrepancy {
  GuestRange range;  ///< Whole blocks of 64 KiB; of a comparison of two disks, sectors.
  Cause cause = Cause::Unknown;
  std::size_t layer = 0;  ///< Whose manifest says what it should be.
  BlockSource source;     ///< Of the beginning of the range, in the chain.
  // Of the first block: "ALGORITHM:HEX", "zeros", or "not held".
  std::string expected;  ///< What was recorded or written; empty: that is not known.
  std::string found;     ///< What the chain has, or the disk that was read.
  std::string live;      ///< What the live export has; empty: none was read.
};

/// A range that could not be read.
struct UnreadRange {
  GuestRange range;
  Outcome outcome = Outcome::Io;  ///< Io, or Mismatch where an image's metadata is corrupt.
  std::string message;
};

/// What came of reading a disk: lists of at most 1,000 merged ranges each, and exact sums.
struct QCHAIN_API Findings {
  std::uint64_t read_bytes = 0;
  std::vector<Discrepancy> different;
  std::uint64_t different_bytes = 0;
  std::vector<UnreadRange> unread;
  std::uint64_t unread_bytes = 0;
  Outcome unread_outcome = Outcome::Done;  ///< The worst of all unread ranges, listed or not.

  bool is_clean() const noexcept { return different_bytes == 0 && unread_bytes == 0; }
  /// Done, Mismatch, or what kept bytes from being read.
  Outcome outcome() const noexcept;
  /// Whether the lists were long enough.
  bool lists_all() const noexcept;
  /// Whether anything was found in `range`.
  bool touches(const GuestRange& range) const;
  /// Adds it, as a part of the last range where the two are alike; the list has at most `max_listed`.
  void add_unread(const UnreadRange& range, std::size_t max_listed);
};

}  // namespace qchain
