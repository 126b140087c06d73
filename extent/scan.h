// Reads a disk without copying it, for watchers that hash, check or record what is read.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "extent/block_device.h"
#include "extent/error.h"
#include "extent/piece.h"

namespace qchain {

/// Sees the pieces of one worker, in a scan or a copy.
class PieceWatcher {
 public:
  virtual ~PieceWatcher() = default;
  /// The piece that this worker takes next. `stored`: what of it a layer stores, unit by unit, where one is
  /// written or sealed; else the runs of the piece. One at a time, in guest order.
  virtual void plan(const Piece& piece, const Extents& stored) = 0;
  /// Called before fetched() if the content has changed what the layer stores: runs that were Zero may be
  /// Inherit now, and less may be stored.
  virtual void revised(const Piece& piece, const Extents& stored);
  /// The Data runs of the piece, read. Called in parallel with those of other workers.
  virtual void fetched(std::span<const ReadRequest> runs) = 0;
  /// Called before fetched(), in the handler of `error`, if one block could not be read; its bytes are zeros.
  /// Reading goes on if it returns. By default it rethrows the error.
  virtual void unread(const GuestRange& block, const Error& error);
  /// Called after fetched(), one at a time and in guest order.
  virtual void commit() {}
};

/// Makes the watcher of one worker. Called in parallel.
using WatcherFactory = std::function<std::unique_ptr<PieceWatcher>()>;

/// Gives the next piece and what of it is stored; false at the end. Called one at a time.
using PieceSource = std::function<bool(Piece& piece, Extents& stored)>;
/// The pieces of a stream of extents.
PieceSource pieces_of(ExtentSource source, const PieceLimits& limits = {});

struct ScanOptions {
  unsigned workers = 1;
  std::uint64_t piece_bytes = PieceLimits{}.data;  ///< The most data in one piece.
  /// Called with the offset up to which the disk has been processed, in guest order.
  std::function<void(std::uint64_t done)> progress = [](std::uint64_t) {};
};

/// Opens a further reader; nullptr if none is available. Called in parallel.
using ReaderFactory = std::function<std::unique_ptr<Reader>()>;

/// Reads the Data runs of all pieces in parallel, and shows them to watchers. A batch that fails is read
/// again block by block, if other bytes of it may be readable. Throws Error.
void scan(const ReaderFactory& open_reader, const PieceSource& pieces, const WatcherFactory& make_watcher,
          const ScanOptions& options);

/// Reads a batch; if that fails, block by block, calling `watcher.unread()` for blocks that cannot be read.
/// Throws Error if the failure is not local to some bytes.
void read_watched(Reader& reader, std::span<const ReadRequest> batch, PieceWatcher& watcher);

}  // namespace qchain
