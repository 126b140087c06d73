#pragma once

#include <libaio.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "extent/file.h"

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

/// Writes of one thread to one file that go on while the thread does something else. Only writes past the
/// page cache (File::bypass_cache) can; others are done at once.
class BackgroundWrites {
 public:
  /// The file has to outlive it.
  explicit BackgroundWrites(const File& file) : file_(file) {}
  /// Waits. What failed is lost.
  ~BackgroundWrites();
  BackgroundWrites(const BackgroundWrites&) = delete;
  BackgroundWrites& operator=(const BackgroundWrites&) = delete;

  /// Begins to write all of `writes`, many with one system call, after a wait() for those before. Their bytes
  /// stay where they are until the next wait(). Throws Error (Io).
  void start(std::vector<FileWrite> writes);
  /// Until all that was started is written. Throws Error (Io).
  void wait();

 private:
  /// How many writes are under way at a time.
  static constexpr int kDepth = 32;

  void write_at_once(FileWrite& write);
  bool has_context();
  void submit();
  void submit_some();
  void collect();
  void finish(FileWrite& write, std::uint64_t written);

  const File& file_;
  io_context_t context_ = nullptr;  // none: not needed yet, or not to be had
  std::vector<FileWrite> writes_;
  std::vector<iocb> commands_;  // to the first of writes_
  std::size_t submitted_ = 0;
  std::size_t under_way_ = 0;
};

}  // namespace qchain
