// The engine that moves data: threads, each with a worker of its own, take pieces of work in guest order,
// fetch them in parallel, commit them in guest order again, and store them in parallel.
//
//     take    one at a time, in guest order    plan the next piece
//     fetch   in parallel                      read, detect zeros, hash, compress
//     commit  one at a time, in guest order    decide what depends on earlier pieces
//     store   in parallel                      write, or start to write
//
// What commit decides is therefore the same for any number of threads. A worker works on one piece at a time,
// but the writes that store() started for the piece before may still be in flight: a worker that writes in
// the background needs buffers for two pieces, which bounds memory at workers x 2 pieces.
#pragma once

#include <functional>
#include <memory>

#include "extent/thread_starter.h"

namespace qchain {

class Worker {
 public:
  virtual ~Worker() = default;
  /// Plans this worker's next piece; false when there is none.
  virtual bool take() = 0;
  virtual void fetch() = 0;
  virtual void commit() = 0;
  virtual void store() {}
  /// After this worker's last piece: waits for writes that store() has left in flight.
  virtual void finish() {}
};

/// Makes a worker; nullptr if the resources for a further one are not available. Called in parallel.
using WorkerFactory = std::function<std::unique_ptr<Worker>()>;

/// Runs up to `threads` (>= 1) workers until there is no work left. The first worker is made before the
/// others and must not be nullptr: an exception of its factory is thrown here. Further workers are left out
/// if there is no thread, memory or connection (any Error of outcome Io) for them. The first exception of any
/// running worker stops all of them and is thrown here, as is a cancellation.
void run_workers(const WorkerFactory& make_worker, unsigned threads, ThreadStarter start = start_thread);

/// More workers than this are no faster, and take memory.
inline constexpr unsigned kMaxWorkers = 16;

/// How many workers to use by default: enough to keep every core and one device busy.
unsigned default_workers();

}  // namespace qchain
