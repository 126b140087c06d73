#include "extent/image_lock.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <span>

#include "extent/error.h"

namespace qchain {

namespace {

// A lock on byte kHeld + i says "I hold permission i"; one on kUnshared + i: "I refuse to share i".
// All are shared locks; a conflict is found by testing for a write lock.
constexpr off_t kHeld = 100;
constexpr off_t kUnshared = 200;
constexpr off_t kConsistentRead = 0;
constexpr off_t kWrite = 1;
constexpr off_t kResize = 3;

struct flock lock_of(short type, off_t byte) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return lock;
}

// False if the file system does not support locks.
bool take(const File& file, off_t byte) {
  struct flock lock = lock_of(F_RDLCK, byte);
  if (fcntl(file.descriptor(), F_OFD_SETLK, &lock) == 0) return true;
  if (errno == EAGAIN || errno == EACCES) {
    throw Error(Outcome::Io,
                fmt::format("{}: another program is changing its image locks; try again", file.path()));
  }
  return false;
}

bool is_locked(const File& file, off_t byte) {
  struct flock lock = lock_of(F_WRLCK, byte);
  return fcntl(file.descriptor(), F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

void refuse_if_locked(const File& file, off_t byte, const char* what) {
  if (!is_locked(file, byte)) return;
  throw Error(Outcome::Io,
              fmt::format("{}: in use: another program {}, such as a running guest; stop it first",
                          file.path(), what),
              Remedy::ForceShare);
}

// For writing: consistent readers do not share these permissions, and writers hold them.
void refuse_if_in_use(const File& file) {
  for (const off_t byte : {kHeld + kWrite, kHeld + kResize, kUnshared + kWrite, kUnshared + kResize}) {
    if (!is_locked(file, byte)) continue;
    throw Error(Outcome::Io, fmt::format("{}: in use by another process, such as a running guest (it holds "
                                         "QEMU's image lock on byte {}); stop it first",
                                         file.path(), byte));
  }
}

}  // namespace

void lock_image(const File& file, Sharing sharing) {
  constexpr std::array<off_t, 3> kToRead{kHeld + kConsistentRead, kUnshared + kWrite, kUnshared + kResize};
  constexpr std::array<off_t, 3> kToWrite{kHeld + kConsistentRead, kHeld + kWrite, kUnshared + kWrite};
  // Before our own locks are taken, and again after: of two programs that start at the same time, at least
  // one sees the other's locks.
  if (sharing == Sharing::Write) refuse_if_in_use(file);
  const std::span<const off_t> to_take = sharing == Sharing::Write  ? std::span(kToWrite)
                                         : sharing == Sharing::Read ? std::span(kToRead)
                                                                    : std::span(kToRead).first(1);
  for (const off_t byte : to_take) {
    if (!take(file, byte)) return;
  }
  if (sharing == Sharing::Write) return refuse_if_in_use(file);
  refuse_if_locked(file, kUnshared + kConsistentRead, "does not allow reading it");
  if (sharing == Sharing::Force) return;
  refuse_if_locked(file, kHeld + kWrite, "writes to it");
  refuse_if_locked(file, kHeld + kResize, "may resize it");
}

}  // namespace qchain
