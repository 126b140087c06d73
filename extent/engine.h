// The threads of a pass (extent/pass.h): each has a worker, which plans and commits in turn and does the rest in
// parallel.
#pragma once

#include <functional>
#include <memory>

#include "extent/thread_starter.h"

namespace qchain {

class Worker {
 public:
  virtual ~Worker() = default;
  /// Plans this worker's next piece; false when there is none. One at a time.
  virtual bool take() = 0;
  virtual void fetch() = 0;
  /// One at a time, in the order of take().
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
