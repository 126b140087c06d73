// The one engine that moves data: threads, each with a worker of its own, that take pieces of work in
// guest order, fetch them side by side, settle them in guest order again, and store them side by side.
//
//     take    one at a time, in guest order    which piece comes next
//     fetch   side by side                     read, look for zeros, hash, compress
//     settle  one at a time, in guest order    decide what depends on what came before
//     store   side by side                     write
//
// What settle decides is therefore the same whatever the number of threads. Memory is bounded by
// workers x piece: a worker holds one piece at a time.
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
  virtual void settle() = 0;
  virtual void store() {}
  /// After this worker's last piece: waits for what store() has left under way.
  virtual void finish() {}
};

/// Makes a worker; nullptr where the resources for a further one are not available. Called side by side.
using WorkerFactory = std::function<std::unique_ptr<Worker>()>;

/// Runs up to `threads` (>= 1) workers until there is no work left. The first worker is made before
/// the others, and has to exist: its factory's exception is thrown here. A further worker for which there is
/// no thread, no memory, no connection (any Error of outcome Io) is left out. The first exception of any
/// worker at work stops all of them and is thrown here, as is an interrupt.
void run_workers(const WorkerFactory& make_worker, unsigned threads, ThreadStarter start = start_thread);

/// More than this are no faster, and take memory.
inline constexpr unsigned kMaxWorkers = 16;

/// How many workers to use where the user does not say: enough to keep every core and one device busy.
unsigned default_workers();

}  // namespace qchain
