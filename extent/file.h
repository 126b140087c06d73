#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "extent/range.h"

struct iovec;

namespace qchain {

/// Which file this is, whatever it is called.
struct FileIdentity {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  friend bool operator==(const FileIdentity&, const FileIdentity&) = default;
};

/// What changes when somebody writes to a file.
struct FileStamp {
  std::uint64_t size = 0;
  std::int64_t seconds = 0;  ///< Of the modification time, since 1970.
  std::int64_t nanoseconds = 0;
  friend bool operator==(const FileStamp&, const FileStamp&) = default;
};

/// What becomes of the space of what is overwritten with zeros.
enum class ZeroSpace {
  Release,  ///< Given back where the target can: thin volumes stay thin.
  Keep,     ///< Allocated.
};

/// An open file, device or pipe. Every failure is an Error (Io) that names the path.
class File {
 public:
  /// Takes over an open descriptor; `path` is for messages.
  File(int descriptor, std::string path) : descriptor_(descriptor), path_(std::move(path)) {}
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File();

  static File open_to_read(const std::string& path);

  int descriptor() const noexcept { return descriptor_; }
  const std::string& path() const noexcept { return path_; }
  FileIdentity identity() const;
  FileStamp stamp() const;
  /// Sets the modification time. Throws nothing: a file system may have none.
  void set_time(std::int64_t seconds) const noexcept;
  bool is_regular() const;
  bool is_block_device() const;
  /// Length of a regular file, size of a block device.
  std::uint64_t size() const;
  /// Bytes that a regular file occupies on its file system.
  std::uint64_t allocated_bytes() const;

  /// Reads up to into.size() bytes; fewer only at the end of the file.
  std::size_t read_at_most(HostOffset offset, std::span<std::byte> into) const;
  /// Reads exactly; an end of file inside is an error.
  void read(HostOffset offset, std::span<std::byte> into) const;
  void write(HostOffset offset, std::span<const std::byte> bytes) const;
  /// Writes the concatenation of `parts`, which is changed on the way.
  void write(HostOffset offset, std::span<iovec> parts) const;
  /// Writes at the current position: for pipes. Throws Error on an interrupt too.
  void append(std::span<const std::byte> bytes) const;
  void resize(std::uint64_t bytes) const;
  /// Makes it `bytes` long, with all of its space set aside.
  void allocate(std::uint64_t bytes) const;
  /// Of a block device.
  bool is_read_only() const;
  /// From now on, write() goes past the page cache where whole pages are written from whole pages, as far as
  /// the file system knows how. For what is written once, and much of it: it saves a copy and the pages, and
  /// sync() finds nothing left to wait for.
  void bypass_cache();
  /// A descriptor that writes `parts` past the page cache; -1: there is none, or they are not whole pages.
  int descriptor_past_cache(HostOffset offset, std::span<const iovec> parts) const;
  /// Makes [offset, offset + length) read as zeros, by the fastest way that the target has.
  void write_zeros(HostOffset offset, std::uint64_t length, ZeroSpace space = ZeroSpace::Release) const;
  /// Lets the system begin with what sync() has to wait for.
  void begin_sync(HostOffset offset, std::uint64_t length) const;
  void sync() const;

 private:
  void wait_until_writable() const;
  [[noreturn]] void throw_write_error(HostOffset offset, int error_number) const;

  int descriptor_;
  int direct_ = -1;  // the same file, opened for I/O past the page cache
  std::string path_;
};

}  // namespace qchain
