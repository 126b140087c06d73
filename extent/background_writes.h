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

/// Gathers writes: neighbours in the file become one.
class WriteList {
 public:
  /// `bytes` stay where they are until they are written.
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

/// The writes of any number of threads to one file, past the page cache. It has no more of them under way
/// than keep a device busy: a device that is given many at once completes them all at the same time, and
/// then the threads that wait for it start over together, while it is idle.
///
/// Where the system has no context or no thread for it, or the context fails later, writes are synchronous.
class WriteQueue {
 public:
  /// The file has to outlive it.
  explicit WriteQueue(const File& file, const AsyncWriteCalls& calls = {}) : file_(file), calls_(calls) {}
  /// All BackgroundWrites have to be gone.
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
    Command* next = nullptr;  // in the list of those that wait
    std::size_t slot = 0;     // in under_way_
  };

  // Commands wait in a list that needs no memory of its own, so that adding one cannot fail half-way.
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
  static constexpr std::size_t kMaxUnderWay = 64;
  static constexpr std::uint64_t kMaxBytesUnderWay = std::uint64_t{6} << 20;

  bool is_usable() noexcept;
  void set_up() noexcept;
  void add(BackgroundWrites& owner);
  void wait_for(BackgroundWrites& owner);
  void submit();
  void submit_some(std::span<iocb*> some);
  void collect();
  void collect_until_the_end();
  Command& take_from_under_way(Command& command) noexcept;
  void fail_all(const std::exception_ptr& error) noexcept;
  void finish(Command& command, std::uint64_t written);
  static void finish_with(Command& command, const std::exception_ptr& error) noexcept;

  const File& file_;
  const AsyncWriteCalls calls_;
  std::mutex mutex_;  // of all that follows, and of what the owners say of theirs
  std::condition_variable begun_;
  bool asked_for_context_ = false;
  io_context_t context_ =
      nullptr;  // null: not needed yet, not available, or failed; never without collector_
  CommandList waiting_;
  std::array<Command*, kMaxUnderWay> under_way_{};
  std::size_t under_way_count_ = 0;
  std::uint64_t bytes_under_way_ = 0;
  bool ending_ = false;
  std::jthread collector_;
};

/// Writes of one thread to one file that go on while the thread does something else. Only writes past the
/// page cache (File::bypass_cache) can; others are synchronous.
class BackgroundWrites {
 public:
  /// The queue has to outlive it.
  explicit BackgroundWrites(WriteQueue& queue) : queue_(queue) {}
  /// Waits. What failed is lost.
  ~BackgroundWrites();
  BackgroundWrites(const BackgroundWrites&) = delete;
  BackgroundWrites& operator=(const BackgroundWrites&) = delete;

  /// Begins to write all of `writes`, after a wait() for those before. Their bytes stay where they are until
  /// the next wait(). Throws Error (Io).
  void start(std::vector<FileWrite> writes);
  /// Until all that was started is written. Throws Error (Io).
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
