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
  Extents stored;                ///< What of it a layer stores, if one is written or sealed; by unit.
};

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

/// The memory for the pieces of all workers, in bytes; exceeded only if the smallest possible pieces need
/// more.
inline constexpr std::uint64_t kMaxPieceMemory = std::uint64_t{32} << 20;

/// The largest pieces that fit in kMaxPieceMemory if each of `workers` has `copies` of one. `boundary`:
/// bytes.
PieceLimits limits_for(unsigned workers, unsigned copies, std::uint64_t boundary = PieceLimits{}.boundary);

struct WorkerPlan {
  unsigned workers = 1;
  unsigned buffers = 1;  ///< Of each: with two, the next piece is read while the last one is written.
};

/// How many of the `wanted` workers, and how many buffers, fit in `memory`. All in bytes: `buffer` is one
/// buffer, `fixed` what each worker needs beside its buffers.
WorkerPlan plan_workers(unsigned wanted, std::uint64_t buffer, std::uint64_t fixed = 0,
                        std::uint64_t memory = kMaxPieceMemory);

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
