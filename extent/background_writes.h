#pragma once

#include <libaio.h>
#include <sys/uio.h>

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "extent/file.h"
#include "extent/thread_starter.h"

namespace qchain {

/// Where in a file the concatenation of `parts` belongs.
struct FileWrite {
  HostOffset offset;
  std::vector<iovec> parts;
};

/// Collects writes, and merges those that are adjacent in the file.
class WriteList {
 public:
  /// `bytes` must stay valid until they are written.
  void add(HostOffset at, std::span<const std::byte> bytes);
  std::vector<FileWrite> take();

 private:
  std::vector<FileWrite> writes_;
  HostOffset end_{0};  // of the last one
};

class BackgroundWrites;

/// What a WriteQueue needs of the system. Tests replace members to make them fail.
struct AsyncWriteCalls {
  int (*set_up)(int, io_context_t*) = io_setup;
  int (*get_events)(io_context_t, long, long, io_event*, timespec*) = io_getevents;
  ThreadStarter start = start_thread;
};

/// Asynchronous direct writes of any number of threads to one file. No more are in flight than keep a device
/// busy: a device that is given many at once completes them together, and is then idle until the waiting
/// threads submit new ones.
///
/// Writes are synchronous where the system has no AIO context or no thread for it, and after the context has
/// failed.
class WriteQueue {
 public:
  /// The file has to outlive it.
  explicit WriteQueue(const File& file, const AsyncWriteCalls& calls = {}) : file_(file), calls_(calls) {}
  /// All BackgroundWrites have to be destroyed before.
  ~WriteQueue();
  WriteQueue(const WriteQueue&) = delete;
  WriteQueue& operator=(const WriteQueue&) = delete;

 private:
  friend class BackgroundWrites;

  struct Command {
    iocb control{};
    FileWrite write;
    std::uint64_t length = 0;
    BackgroundWrites* owner = nullptr;
    Command* next = nullptr;  // in waiting_
    std::size_t slot = 0;     // in in_flight_
  };

  // An intrusive list: adding a command allocates nothing, so it cannot fail half-way.
  class CommandList {
   public:
    bool empty() const noexcept { return first_ == nullptr; }
    Command* first() const noexcept { return first_; }
    void push(Command& command) noexcept;
    Command& pop() noexcept;

   private:
    Command* first_ = nullptr;
    Command* last_ = nullptr;
  };

  /// Whichever is reached first; one write of any length is always allowed.
  static constexpr std::size_t kMaxInFlight = 64;
  static constexpr std::uint64_t kMaxBytesInFlight = std::uint64_t{6} << 20;

  bool is_usable() noexcept;
  void set_up() noexcept;
  void add(BackgroundWrites& owner);
  void wait_for(BackgroundWrites& owner);
  void submit();
  void submit_some(std::span<iocb*> some);
  void collect();
  void collect_until_stopped();
  Command& remove_in_flight(Command& command) noexcept;
  void fail_all(const std::exception_ptr& error) noexcept;
  void finish(Command& command, std::uint64_t written);
  static void finish_with(Command& command, const std::exception_ptr& error) noexcept;

  const File& file_;
  const AsyncWriteCalls calls_;
  std::mutex mutex_;  // protects all members below, and unfinished_ and error_ of the owners
  std::condition_variable submitted_;
  bool set_up_tried_ = false;
  io_context_t context_ =
      nullptr;  // null: not needed yet, not available, or failed; never without collector_
  CommandList waiting_;
  std::array<Command*, kMaxInFlight> in_flight_{};
  std::size_t in_flight_count_ = 0;
  std::uint64_t bytes_in_flight_ = 0;
  bool stopping_ = false;
  std::jthread collector_;
};

/// Asynchronous writes of one thread to one file. Only direct I/O (File::bypass_cache) is asynchronous; other
/// writes are complete when start() returns.
class BackgroundWrites {
 public:
  /// The queue has to outlive it.
  explicit BackgroundWrites(WriteQueue& queue) : queue_(queue) {}
  /// Waits for all writes. Errors are dropped: call wait() to get them.
  ~BackgroundWrites();
  BackgroundWrites(const BackgroundWrites&) = delete;
  BackgroundWrites& operator=(const BackgroundWrites&) = delete;

  /// Calls wait(), then starts `writes`. Their buffers must stay valid until the next wait(). Throws Error
  /// (Io).
  void start(std::vector<FileWrite> writes);
  /// Waits until all writes are complete. Throws the first error: Error (Io).
  void wait();

 private:
  friend class WriteQueue;

  WriteQueue& queue_;
  std::vector<WriteQueue::Command> commands_;
  std::size_t unfinished_ = 0;  // of commands_
  std::exception_ptr error_;    // of the first that failed
  std::condition_variable finished_;
};

}  // namespace qchain
