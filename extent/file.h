#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "extent/range.h"

struct iovec;

namespace qchain {

/// Identifies a file independently of its name.
struct FileIdentity {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  friend bool operator==(const FileIdentity&, const FileIdentity&) = default;
};

/// By which a later write to a file is noticed. Not proof that there was none: the time has the resolution of
/// the file system's clock, any program can set it, and for a block device it means nothing.
struct FileStamp {
  std::uint64_t size = 0;
  std::int64_t seconds = 0;  ///< Of the modification time, since 1970.
  std::int64_t nanoseconds = 0;
  friend bool operator==(const FileStamp&, const FileStamp&) = default;
};

/// What happens to the space of a range that is overwritten with zeros.
enum class ZeroSpace {
  Release,  ///< Deallocated if the target supports it: thin volumes stay thin.
  Keep,     ///< Stays allocated.
};

/// An open file, device or pipe. Where nothing else is said, functions throw Error (Io), naming the path, if
/// they fail.
class File {
 public:
  /// Takes ownership of an open descriptor; `path` is for messages.
  File(int descriptor, std::string path) : descriptor_(descriptor), path_(std::move(path)) {}
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File();

  static File open_to_read(const std::string& path);
  /// The same open file once more, with `path` for messages.
  File duplicate(std::string path) const;

  int descriptor() const noexcept { return descriptor_; }
  const std::string& path() const noexcept { return path_; }
  FileIdentity identity() const;
  FileStamp stamp() const;
  /// Sets the modification time. Ignores errors: a file system may not support it.
  void set_time(std::int64_t seconds) const noexcept;
  bool is_regular() const;
  bool is_block_device() const;
  /// Length of a regular file, size of a block device.
  std::uint64_t size() const;
  /// Bytes that a regular file occupies on its file system.
  std::uint64_t allocated_bytes() const;

  /// Reads up to into.size() bytes; fewer only at the end of the file.
  std::size_t read_at_most(HostOffset offset, std::span<std::byte> into) const;
  /// Reads into.size() bytes. Throws Error (Mismatch) too, if the file ends before.
  void read(HostOffset offset, std::span<std::byte> into) const;
  void write(HostOffset offset, std::span<const std::byte> bytes) const;
  /// Writes the concatenation of `parts`, which is modified.
  void write(HostOffset offset, std::span<iovec> parts) const;
  /// Writes at the current position: for pipes. Throws Error (Interrupted or Terminated) too, on a
  /// cancellation.
  void append(std::span<const std::byte> bytes) const;
  void resize(std::uint64_t bytes) const;
  /// Makes it `bytes` long, with all of its space allocated.
  void allocate(std::uint64_t bytes) const;
  /// Whether a block device is read-only. Throws nothing.
  bool is_read_only() const;
  /// From now on, write() uses direct I/O for whole pages in page-aligned memory, if the file system supports
  /// it. For large files that are written once: it saves a copy and cache pages, and leaves little for sync()
  /// to wait for. Throws nothing.
  void bypass_cache();
  /// The descriptor for direct I/O of `parts` at `offset`; -1: there is none, or they are not page-aligned.
  int direct_descriptor(HostOffset offset, std::span<const iovec> parts) const;
  /// Makes [offset, offset + length) read as zeros, by the fastest method that the target supports.
  void write_zeros(HostOffset offset, std::uint64_t length, ZeroSpace space = ZeroSpace::Release) const;
  /// Starts writeback, so that sync() has less to wait for. A hint: throws nothing.
  void begin_sync(HostOffset offset, std::uint64_t length) const;
  void sync() const;

 private:
  void wait_until_writable() const;
  [[noreturn]] void throw_write_error(HostOffset offset, int error_number) const;

  int descriptor_;
  int direct_ = -1;  // the same file, opened with O_DIRECT
  std::string path_;
};

}  // namespace qchain
