// The engine: reads a disk piece by piece, and takes each piece through a row of stages.
//
//     hash a disk       {hash}
//     restore           {check, write to the target}
//     pull              {compare what is suspect, hash, write the layer}
//     verify            {check}, or {compare}
//
// Workers, each with a thread, a reader and stages of its own, do this side by side:
//
//     plan      one at a time, in guest order    plan the next piece
//     fetch     in parallel                      read; detect zeros, hash, compress
//     commit    one at a time, in guest order    decide what depends on earlier pieces
//     store     in parallel                      write, or start to write
//
// What is decided in commit is therefore the same for any number of workers.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "extent/block_device.h"
#include "extent/piece.h"
#include "extent/stage.h"

namespace qchain {

/// Opens a further reader; nullptr if none is available, but never on the first call. Called in parallel.
using ReaderFactory = std::function<std::unique_ptr<Reader>()>;

/// Gives the next piece; false at the end. Called one at a time.
using PieceSource = std::function<bool(Piece& piece)>;
/// The pieces of a stream of extents.
PieceSource pieces_of(ExtentSource source, const PieceLimits& limits = {});

struct Pass {
  ReaderFactory open_reader;
  PieceSource pieces;
  std::vector<StageFactory> stages;  ///< A batch goes through them in this order.
  WorkerPlan workers;
  std::uint64_t piece_bytes = PieceLimits{}.data;  ///< The most data in one piece, with its padding.
  std::uint64_t size = std::numeric_limits<std::uint64_t>::max();  ///< Of the disk: see PieceReader.
  std::uint64_t unit = 1;                                          ///< Likewise.
  /// Called with the offset up to which the disk has been processed, in guest order.
  std::function<void(std::uint64_t done)> progress = [](std::uint64_t) {};
};

/// Runs the pass to its end. A block that cannot be read ends it with the reader's error, unless a stage
/// accepts that. Throws Error.
void run(const Pass& pass);

}  // namespace qchain
