// Who wants to know what a layer holds while it is written, block by block: so that a manifest costs no
// second read.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "extent/extent.h"

namespace qchain {

/// Neighbouring blocks of which the layer holds something (Data), all of which it holds as zeros (Zero), or
/// of which it holds nothing (Inherit). Begins at a block's beginning.
struct ObservedRun {
  GuestRange range;
  Kind kind = Kind::Inherit;
  std::span<const std::byte> bytes;  ///< What the disk is there, whoever holds it; Data only.
};

/// Sees the pieces of one worker.
class PieceObserver {
 public:
  virtual ~PieceObserver() = default;
  /// A piece was read. `runs` cover it; `stored` says what the layer holds of it, unit by unit. Side by side
  /// with other workers'.
  virtual void fetched(std::span<const ObservedRun> runs, const Extents& stored) = 0;
  /// Its turn has come, in guest order, one at a time.
  virtual void settle() = 0;
};

class LayerObserver {
 public:
  virtual ~LayerObserver() = default;
  virtual std::uint64_t block_size() const = 0;
  /// Called side by side.
  virtual std::unique_ptr<PieceObserver> for_worker() = 0;
};

}  // namespace qchain
