// What can be done with the pieces of a disk while they pass through memory.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "extent/block_device.h"
#include "extent/error.h"
#include "extent/piece.h"

namespace qchain {

/// A piece that a worker has read.
struct Batch {
  Piece piece;
  std::vector<ReadRequest> data;  ///< The Data runs of the piece, each with its bytes.
  unsigned buffer = 0;            ///< Which of the worker's buffers holds the bytes.
  Reader* reader = nullptr;       ///< The worker's, for reading some of them again.
};

/// One thing that a pass does with each batch, such as hashing, checking or writing it. Each worker has a
/// stage of its own, which sees only that worker's pieces.
class Stage {
 public:
  virtual ~Stage() = default;

  /// The piece that this worker is going to read. One at a time, in guest order.
  virtual void plan(const Piece&) {}
  /// Some block of the piece cannot be read, for `error`: whether the pass goes on, with zeros in place of
  /// the block. It does if any stage accepts it. Called before fetched().
  virtual bool accept_unread(const GuestRange& /*block*/, const Error& /*error*/) { return false; }
  /// The piece was read. May make Inherit of Zero runs of the piece, and of what it stores: the stages that
  /// follow see the change. In parallel with other workers.
  virtual void fetched(Batch& batch) = 0;
  /// One at a time, in guest order.
  virtual void commit(const Batch&) {}
  /// Writes, or starts to write. In parallel with other workers.
  virtual void store(const Batch&) {}
  /// The buffer is about to be filled again, or the pass ends: waits for writes from it.
  virtual void wait(unsigned /*buffer*/) {}
};

/// Makes the stage of one worker. Called in parallel.
using StageFactory = std::function<std::unique_ptr<Stage>()>;

}  // namespace qchain
