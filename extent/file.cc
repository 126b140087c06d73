#include "extent/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <filesystem>
#include <limits>
#include <vector>

#include "extent/cancellation.h"
#include "extent/error.h"
#include "extent/page_buffer.h"

namespace qchain {

namespace {

struct stat stat_of(const File& file) {
  struct stat status {};
  if (fstat(file.descriptor(), &status) != 0) {
    throw system_error(fmt::format("{}: cannot stat", file.path()), errno);
  }
  return status;
}

}  // namespace

File::File(File&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      direct_(std::exchange(other.direct_, -1)),
      path_(std::move(other.path_)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(direct_, other.direct_);
  std::swap(path_, other.path_);
  return *this;
}

File::~File() {
  if (direct_ >= 0) close(direct_);
  if (descriptor_ >= 0) close(descriptor_);
}

File File::open_to_read(const std::string& path) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer. It makes no difference to files and devices.
  const int descriptor = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (descriptor < 0) throw system_error(fmt::format("{}: cannot open", path), errno);
  return {descriptor, path};
}

File File::duplicate(std::string path) const {
  const int descriptor = fcntl(descriptor_, F_DUPFD_CLOEXEC, 0);
  if (descriptor < 0) throw system_error(fmt::format("{}: cannot duplicate the descriptor", path), errno);
  return {descriptor, std::move(path)};
}

FileIdentity File::identity() const {
  const struct stat status = stat_of(*this);
  return {status.st_dev, status.st_ino};
}

FileStamp File::stamp() const {
  const struct stat status = stat_of(*this);
  return {static_cast<std::uint64_t>(status.st_size), status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
}

void File::set_time(std::int64_t seconds) const noexcept {
  const std::array<timespec, 2> times{{{0, UTIME_OMIT}, {seconds, 0}}};
  futimens(descriptor_, times.data());
}

bool File::is_regular() const { return S_ISREG(stat_of(*this).st_mode); }
bool File::is_block_device() const { return S_ISBLK(stat_of(*this).st_mode); }

std::uint64_t File::size() const {
  const struct stat status = stat_of(*this);
  if (!S_ISBLK(status.st_mode)) return static_cast<std::uint64_t>(status.st_size);
  std::uint64_t bytes = 0;
  if (ioctl(descriptor_, BLKGETSIZE64, &bytes) != 0) {
    throw system_error(fmt::format("{}: cannot get the size of the device", path_), errno);
  }
  return bytes;
}

std::uint64_t File::allocated_bytes() const {
  return static_cast<std::uint64_t>(stat_of(*this).st_blocks) * kSectorSize;
}

std::size_t File::read_at_most(HostOffset offset, std::span<std::byte> into) const {
  // An offset in an untrusted image may be larger than any file.
  constexpr std::uint64_t kMost = std::numeric_limits<off_t>::max();
  into = into.first(std::min<std::uint64_t>(into.size(), kMost - std::min(kMost, offset.bytes())));
  std::size_t done = 0;
  while (done < into.size()) {
    const ssize_t n =
        pread(descriptor_, into.data() + done, into.size() - done, static_cast<off_t>(offset.bytes() + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      throw ReadError(fmt::format("{}: cannot read {} bytes at offset {:#x}", path_, into.size() - done,
                                  offset.bytes() + done),
                      errno);
    }
    if (n == 0) break;
    done += static_cast<std::size_t>(n);
  }
  return done;
}

void File::read(HostOffset offset, std::span<std::byte> into) const {
  const std::size_t done = read_at_most(offset, into);
  if (done < into.size()) {
    throw Error(Outcome::Mismatch,
                fmt::format("{}: ends at offset {:#x}, but {} bytes were expected at offset {:#x}; the file "
                            "is truncated",
                            path_, offset.bytes() + done, into.size(), offset.bytes()));
  }
}

void File::write(HostOffset offset, std::span<const std::byte> bytes) const {
  // pwritev does not change what its parts point at.
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  write(offset, std::span(&part, 1));
}

void File::write(HostOffset offset, std::span<iovec> parts) const {
  constexpr std::size_t kMaxParts = 1024;  // IOV_MAX
  while (!parts.empty()) {
    if (parts.front().iov_len == 0) {
      parts = parts.subspan(1);
      continue;
    }
    const std::span<iovec> some = parts.first(std::min(parts.size(), kMaxParts));
    const auto write_by = [&](int descriptor) {
      return pwritev(descriptor, some.data(), static_cast<int>(some.size()),
                     static_cast<off_t>(offset.bytes()));
    };
    ssize_t n = -1;
    errno = EINVAL;
    if (const int direct = direct_descriptor(offset, some); direct >= 0) n = write_by(direct);
    // The file system may require a larger alignment than pages.
    if (n < 0 && errno == EINVAL) n = write_by(descriptor_);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_write_error(offset, errno);
    auto written = static_cast<std::size_t>(n);
    offset = offset + written;
    while (written > 0) {
      iovec& part = parts.front();
      const std::size_t step = std::min(written, part.iov_len);
      part.iov_base = static_cast<std::byte*>(part.iov_base) + step;
      part.iov_len -= step;
      written -= step;
      if (part.iov_len == 0) parts = parts.subspan(1);
    }
  }
}

void File::throw_write_error(HostOffset offset, int error_number) const {
  std::string message = fmt::format("{}: cannot write at offset {:#x}", path_, offset.bytes());
  if (error_number == ESPIPE || error_number == ENOTSUP || error_number == ENOSYS) {
    message +=
        " (this file system supports sequential writes only; use a mount with a write cache, or write to "
        "standard output with \"-\" and let an uploader read it)";
  }
  throw system_error(message, error_number);
}

// Waits in slices, since a signal may be delivered to another thread than this one.
void File::wait_until_writable() const {
  constexpr int kSlice = 200;  // milliseconds: how late a cancellation may be noticed
  for (;;) {
    throw_if_cancelled();
    pollfd waiting{descriptor_, POLLOUT, 0};
    if (poll(&waiting, 1, kSlice) > 0) return;
  }
}

void File::append(std::span<const std::byte> bytes) const {
  const mode_t mode = stat_of(*this).st_mode;
  const bool is_pipe = S_ISFIFO(mode) || S_ISSOCK(mode);
  while (!bytes.empty()) {
    if (is_pipe) wait_until_writable();
    // A writable pipe takes this much without blocking.
    const std::size_t step = is_pipe ? std::min<std::size_t>(bytes.size(), PIPE_BUF) : bytes.size();
    const ssize_t n = ::write(descriptor_, bytes.data(), step);
    if (n < 0 && errno == EINTR) {
      throw_if_cancelled();
      continue;
    }
    if (n < 0) throw system_error(fmt::format("{}: cannot write", path_), errno);
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

void File::resize(std::uint64_t bytes) const {
  if (ftruncate(descriptor_, static_cast<off_t>(bytes)) != 0) {
    throw system_error(fmt::format("{}: cannot resize to {} bytes", path_, bytes), errno);
  }
}

void File::allocate(std::uint64_t bytes) const {
  if (bytes != 0 && fallocate(descriptor_, 0, 0, static_cast<off_t>(bytes)) != 0) {
    throw system_error(fmt::format("{}: cannot allocate {} bytes", path_, bytes), errno);
  }
}

bool File::is_read_only() const {
  int read_only = 0;
  return ioctl(descriptor_, BLKROGET, &read_only) == 0 && read_only != 0;
}

void File::bypass_cache() {
  if (direct_ >= 0) return;
  // By descriptor: the path may lead to another file by now.
  direct_ = open(fmt::format("/proc/self/fd/{}", descriptor_).c_str(), O_WRONLY | O_DIRECT | O_CLOEXEC);
}

int File::direct_descriptor(HostOffset offset, std::span<const iovec> parts) const {
  const bool whole =
      offset.bytes() % kPage == 0 && std::ranges::all_of(parts, [](const iovec& part) {
        return reinterpret_cast<std::uintptr_t>(part.iov_base) % kPage == 0 && part.iov_len % kPage == 0;
      });
  return whole ? direct_ : -1;
}

void File::write_zeros(HostOffset offset, std::uint64_t length, ZeroSpace space) const {
  // The kernel guarantees zeros after either, or fails; if neither is supported, zeros are written. Punching
  // holes releases space; on a block device ZERO_RANGE allocates it.
  constexpr int kPunch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  constexpr int kZero = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
  const bool thin = space == ZeroSpace::Release;
  for (const int mode : {thin ? kPunch : kZero, thin ? kZero : 0}) {
    if (mode == 0) break;
    if (fallocate(descriptor_, mode, static_cast<off_t>(offset.bytes()), static_cast<off_t>(length)) == 0) {
      return;
    }
  }
  static constexpr std::array<std::byte, std::size_t{64} << 10> kZeros{};
  while (length > 0) {
    const std::size_t step = std::min<std::uint64_t>(length, kZeros.size());
    write(offset, std::span(kZeros).first(step));
    offset = offset + step;
    length -= step;
  }
}

void File::begin_sync(HostOffset offset, std::uint64_t length) const {
  // Where this is not supported, sync() does it all.
  sync_file_range(descriptor_, static_cast<off_t>(offset.bytes()), static_cast<off_t>(length),
                  SYNC_FILE_RANGE_WRITE);
}

void File::sync() const {
  int result = -1;
  do {
    result = fsync(descriptor_);
  } while (result != 0 && errno == EINTR);
  if (result == 0) return;
  // Pipes do not support fsync(), nor do directories on some file systems; for a file or a device it is an
  // error like any other.
  const int error_number = errno;
  const bool unsupported =
      (error_number == EINVAL || error_number == EROFS) && !is_regular() && !is_block_device();
  if (unsupported) return;
  throw system_error(fmt::format("{}: cannot sync what was written (fsync)", path_), error_number);
}

}  // namespace qchain
