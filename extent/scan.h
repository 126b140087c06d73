// Reading a disk to look at it, and those who look: hashing, checking, recording.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "extent/block_device.h"
#include "extent/error.h"
#include "extent/piece.h"

namespace qchain {

/// Sees the pieces of one worker, whoever reads them and whatever for.
class PieceWatcher {
 public:
  virtual ~PieceWatcher() = default;
  /// The piece that this worker takes next. `stored`: what of it a layer stores, unit by unit, where one is
  /// written or sealed; else the runs of the piece. One at a time, in guest order.
  virtual void plan(const Piece& piece, const Extents& stored) = 0;
  /// Called before fetched() where a look at the bytes has changed what the layer stores: runs that were Zero
  /// may be Inherit now, and less may be stored.
  virtual void revised(const Piece& piece, const Extents& stored);
  /// The Data runs of the piece, read. Side by side with other workers'.
  virtual void fetched(std::span<const ReadRequest> runs) = 0;
  /// Called in the handler of an Error while the bytes of one block could not be read, before fetched(); the
  /// block's bytes are zeros then, and mean nothing. Goes on where it returns; throws as it was by default.
  virtual void unread(const GuestRange& block, const Error& error);
  /// Its turn has come: one at a time, in guest order.
  virtual void settle() {}
};

/// Makes the watcher of one worker. Called side by side.
using WatcherFactory = std::function<std::unique_ptr<PieceWatcher>()>;

/// Gives the next piece and what of it is stored; false at the end. Called one at a time.
using PieceSource = std::function<bool(Piece& piece, Extents& stored)>;
/// The pieces of a stream of extents.
PieceSource pieces_of(ExtentSource source, const PieceLimits& limits = {});

struct ScanOptions {
  unsigned workers = 1;
  std::uint64_t piece_bytes = PieceLimits{}.data;  ///< The most data in one piece.
  /// Called with the offset up to which the disk has been dealt with, in guest order.
  std::function<void(std::uint64_t done)> progress = [](std::uint64_t) {};
};

/// Opens a further reader, or gives nullptr where none can be had; called side by side.
using ReaderFactory = std::function<std::unique_ptr<Reader>()>;

/// Reads the Data runs of all pieces, several at a time, and shows them to watchers. Where a batch fails and
/// other bytes may well be readable, it is read again block by block. Throws Error.
void scan(const ReaderFactory& open_reader, const PieceSource& pieces, const WatcherFactory& make_watcher,
          const ScanOptions& options);

/// Reads a batch; what fails, block by block, telling `watcher`. Throws Error where the disk is gone.
void read_watched(Reader& reader, std::span<const ReadRequest> batch, PieceWatcher* watcher);

}  // namespace qchain
