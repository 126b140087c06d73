#include "extent/engine.h"

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "extent/cancellation.h"
#include "extent/error.h"

namespace qchain {

namespace {

class Engine {
 public:
  void run(Worker& worker) {
    try {
      std::uint64_t ticket = 0;
      while (take(worker, ticket)) {
        worker.fetch();
        if (!commit(worker, ticket)) return;
        worker.store();
      }
      worker.finish();
    } catch (...) {
      fail(std::current_exception());
    }
  }

  void fail(std::exception_ptr error) {
    const std::scoped_lock both(taking_, committing_);
    if (!error_) error_ = std::move(error);
    turn_changed_.notify_all();
  }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  bool take(Worker& worker, std::uint64_t& ticket) {
    const std::lock_guard lock(taking_);
    if (error_ || ended_) return false;
    // Set until take() returns: if it throws, no other worker may go on after the gap.
    ended_ = true;
    throw_if_cancelled();
    ended_ = !worker.take();
    ticket = next_ticket_;
    if (!ended_) ++next_ticket_;
    return !ended_;
  }

  bool commit(Worker& worker, std::uint64_t ticket) {
    std::unique_lock lock(committing_);
    turn_changed_.wait(lock, [&] { return error_ || turn_ == ticket; });
    if (error_) return false;
    worker.commit();
    ++turn_;
    turn_changed_.notify_all();
    return true;
  }

  std::mutex taking_;
  std::mutex committing_;
  std::condition_variable turn_changed_;
  std::exception_ptr error_;  // written under both locks, read under either
  bool ended_ = false;
  std::uint64_t next_ticket_ = 0;
  std::uint64_t turn_ = 0;
};

// A further worker, or null. A lack of connections, memory or descriptors is not an error: the others can do
// all the work.
std::unique_ptr<Worker> make_further_worker(const WorkerFactory& make_worker) {
  try {
    return make_worker();
  } catch (const Error& error) {
    if (error.outcome() != Outcome::Io) throw;
  } catch (const std::bad_alloc&) {
  } catch (const std::system_error&) {
  }
  return nullptr;
}

// Starts up to `count` threads: fewer where the system refuses one.
std::vector<std::jthread> start_threads(unsigned count, const std::function<void()>& run,
                                        ThreadStarter start) {
  std::vector<std::jthread> threads;
  try {
    threads.reserve(count);
    while (threads.size() < count) threads.push_back(start(run));
  } catch (const std::bad_alloc&) {
  } catch (const std::system_error&) {
  }
  return threads;
}

}  // namespace

void run_workers(const WorkerFactory& make_worker, unsigned threads, ThreadStarter start) {
  Engine engine;
  const std::unique_ptr<Worker> first = make_worker();
  const std::function<void()> run = [&engine, &make_worker, cancellation = CancellationScope::current()] {
    const CancellationScope scope(cancellation);
    try {
      if (const std::unique_ptr<Worker> worker = make_further_worker(make_worker)) engine.run(*worker);
    } catch (...) {
      engine.fail(std::current_exception());
    }
  };
  std::vector<std::jthread> others = start_threads(threads - 1, run, start);
  engine.run(*first);
  others.clear();  // joins
  engine.rethrow();
}

unsigned default_workers() { return std::clamp(std::thread::hardware_concurrency(), 4U, kMaxWorkers); }

}  // namespace qchain
