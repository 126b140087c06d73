// The unit of work: what one worker fetches, commits and stores at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "extent/extent.h"

namespace qchain {

/// Adjacent extents with a bounded amount of data in them.
struct Piece {
  Extents runs;                  ///< In guest order, without gaps.
  std::uint64_t data_bytes = 0;  ///< Sum of the lengths of the Data runs.
};

/// The memory for the pieces of all workers that write, in bytes; exceeded only if the smallest possible
/// pieces need more.
inline constexpr std::uint64_t kMaxPieceMemory = std::uint64_t{32} << 20;

/// What bounds a piece. All in bytes; `boundary` divides `data` and `empty`.
struct PieceLimits {
  /// Data in one piece.
  std::uint64_t data = std::uint64_t{2} << 20;
  /// Everything else in one piece: what is written or hashed for it can grow with its length, and a
  /// cancellation is noticed between pieces.
  std::uint64_t empty = std::uint64_t{1} << 32;
  /// Pieces begin and end at multiples of this (or at the ends of the stream), so that what is decided
  /// for a block of this size is decided by one worker.
  std::uint64_t boundary = std::uint64_t{64} << 10;
};

/// Cuts a stream of extents into pieces, in guest order.
class PiecePlanner {
 public:
  PiecePlanner(ExtentSource source, PieceLimits limits);

  /// The next piece; false at the end of the stream.
  bool next(Piece& piece);

 private:
  bool refill();
  GuestOffset cut_for(const Piece& piece, std::uint64_t empty_bytes) const;

  ExtentSource source_;
  PieceLimits limits_;
  std::optional<Extent> rest_;  // not yet handed out
};

}  // namespace qchain
