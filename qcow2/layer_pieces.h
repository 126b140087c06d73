#pragma once

#include <cstdint>
#include <deque>
#include <optional>

#include "extent/piece.h"

namespace qchain {

/// The pieces of a layer that is written or sealed: which blocks are read, and which units of them the layer
/// stores. Blocks are hashed, so they are read whole even if the layer stores only one cluster of each.
class LayerPieces {
 public:
  /// `stored`: normalised, from offset 0 on. What a bottom layer does not store is Zero in the pieces.
  /// `block`: bytes, a power of two up to 64 MiB. `also_read`: whole blocks that are read even if nothing of
  /// them is stored; may be empty.
  LayerPieces(ExtentSource stored, std::uint64_t block, Position position, const GuestRange& also_read,
              const PieceLimits& limits);
  LayerPieces(const LayerPieces&) = delete;
  LayerPieces& operator=(const LayerPieces&) = delete;

  /// The next piece; false at the end.
  bool next(Piece& piece);

 private:
  std::optional<Extent> next_block_run();
  void fill_window();
  std::optional<Extent> take_stored();

  ExtentSource stored_;
  const std::uint64_t block_;
  const Position position_;
  std::optional<Extent> pending_;  // taken from stored_: the part that is not yet in the window
  std::deque<Extent> blocks_;      // of the window, not yet handed to the planner
  std::deque<Extent> ahead_;       // what is stored, up to where the planner has looked
  PiecePlanner planner_;
};

}  // namespace qchain
