// Ranges of a disk that are not as expected: damage, differences, and data that was read back wrong.
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

/// Why bytes differ from what was recorded.
enum class Cause : std::uint8_t {
  Rotted,   ///< The layer's own bytes have changed since they were written.
  Missed,   ///< The bytes of this layer and those below are unchanged: the dirty bitmap missed a change.
  Below,    ///< The layer's own bytes are unchanged, but a layer below is damaged there.
  Changed,  ///< The live side differs from what was recorded.
  Unknown,  ///< There is no manifest to show which side is right.
  Moving,   ///< A second read of the live side gave different data.
};
inline constexpr std::size_t kCauses = 6;
/// "rotted", "missed by the dirty bitmap", "damaged beneath", "changed", "unknown", "moving".
QCHAIN_API const char* to_string(Cause cause) noexcept;

/// Where the bytes of a block come from.
struct BlockSource {
  std::size_t layer = 0;  ///< 0: the top.
  Kind kind = Kind::Inherit;
  std::optional<std::uint64_t> host_offset;  ///< In the layer's file; nullopt: zeros that are not stored.
  bool is_compressed = false;

  friend bool operator==(const BlockSource&, const BlockSource&) = default;
};

/// A range with unexpected content.
struct Discrepancy {
  GuestRange range;  ///< Whole blocks of 64 KiB; when two disks are compared, sectors.
  Cause cause = Cause::Unknown;
  std::size_t layer = 0;  ///< The layer whose manifest has the expected digest.
  BlockSource source;     ///< Where the start of the range comes from in the chain.
  // Digests of the first block: "ALGORITHM:HEX", "zeros", or "not held".
  std::string expected;  ///< What was recorded or written; empty: unknown.
  std::string found;     ///< The content of the chain, or of the disk that was read.
  std::string live;      ///< The content of the live export; empty: none was read.
};

/// A range that could not be read.
struct UnreadRange {
  GuestRange range;
  Outcome outcome = Outcome::Io;  ///< Io, or Mismatch if an image's metadata is corrupt.
  std::string message;
};

/// The result of reading a disk: lists of at most 1,000 merged ranges each, and exact totals.
struct QCHAIN_API Findings {
  std::uint64_t read_bytes = 0;
  std::vector<Discrepancy> different;
  std::uint64_t different_bytes = 0;
  std::vector<UnreadRange> unread;
  std::uint64_t unread_bytes = 0;
  Outcome unread_outcome = Outcome::Done;  ///< The worst of all unread ranges, listed or not.

  bool is_clean() const noexcept { return different_bytes == 0 && unread_bytes == 0; }
  /// Done, Mismatch, or the reason why bytes could not be read.
  Outcome outcome() const noexcept;
  /// Whether the lists are complete.
  bool lists_all() const noexcept;
  /// Whether anything was found in `range`.
  bool touches(const GuestRange& range) const;
  /// Adds a range; merges it with the last one if both are alike. The list has at most `max_listed` ranges.
  void add_unread(const UnreadRange& range, std::size_t max_listed);
};

}  // namespace qchain
