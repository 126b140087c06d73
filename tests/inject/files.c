// Calls on files and folders.
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "plan.h"

// -- open
// -----------------------------------------------------------------------------------------------------------

static mode_t mode_of(int flags, va_list more) {
  return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(more, mode_t) : 0;
}

// A file without a name is a function of its own, tmpfile.
static const char* kind_of(int flags) { return (flags & O_TMPFILE) == O_TMPFILE ? "tmpfile" : "open"; }

#define OPEN(name)                                                                   \
  int name(const char* path, int flags, ...) {                                       \
    va_list more;                                                                    \
    va_start(more, flags);                                                           \
    const mode_t mode = mode_of(flags, more);                                        \
    va_end(more);                                                                    \
    Call call = on_path(kind_of(flags), AT_FDCWD, path, "%#o", (unsigned)flags);     \
    return (int)ended(&call, permitted(&call) ? REAL(name)(path, flags, mode) : -1); \
  }
#define OPENAT(name)                                                                            \
  int name(int directory, const char* path, int flags, ...) {                                   \
    va_list more;                                                                               \
    va_start(more, flags);                                                                      \
    const mode_t mode = mode_of(flags, more);                                                   \
    va_end(more);                                                                               \
    Call call = on_path(kind_of(flags), directory, path, "%#o", (unsigned)flags);               \
    return (int)ended(&call, permitted(&call) ? REAL(name)(directory, path, flags, mode) : -1); \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

// -- data
// -----------------------------------------------------------------------------------------------------------

ssize_t read(int fd, void* into, size_t length) {
  Call call = on_descriptor("read", fd, "%zu", length);
  return ended(&call, permitted(&call) ? REAL(read)(fd, into, shortened(&call, length)) : -1);
}

ssize_t write(int fd, const void* bytes, size_t length) {
  Call call = on_descriptor("write", fd, "%zu", length);
  return ended(&call, permitted(&call) ? REAL(write)(fd, bytes, shortened(&call, length)) : -1);
}

#define PREAD(name)                                                                                      \
  ssize_t name(int fd, void* into, size_t length, off_t offset) {                                        \
    Call call = on_descriptor("pread", fd, "%jd+%zu", (intmax_t)offset, length);                         \
    return ended(&call, permitted(&call) ? REAL(name)(fd, into, shortened(&call, length), offset) : -1); \
  }
PREAD(pread)
PREAD(pread64)

#define PWRITE(name)                                                                                      \
  ssize_t name(int fd, const void* bytes, size_t length, off_t offset) {                                  \
    Call call = on_descriptor("pwrite", fd, "%jd+%zu", (intmax_t)offset, length);                         \
    return ended(&call, permitted(&call) ? REAL(name)(fd, bytes, shortened(&call, length), offset) : -1); \
  }
PWRITE(pwrite)
PWRITE(pwrite64)

// A short one writes half of the first part.
#define PWRITEV(name)                                                                     \
  ssize_t name(int fd, const struct iovec* parts, int count, off_t offset) {              \
    size_t length = 0;                                                                    \
    for (int i = 0; i < count; ++i) length += parts[i].iov_len;                           \
    Call call = on_descriptor("pwrite", fd, "%jd+%zu", (intmax_t)offset, length);         \
    if (!permitted(&call)) return ended(&call, -1);                                       \
    if (call.verdict == kPass) return ended(&call, REAL(name)(fd, parts, count, offset)); \
    const struct iovec part = {parts[0].iov_base, shortened(&call, parts[0].iov_len)};    \
    return ended(&call, REAL(name)(fd, &part, 1, offset));                                \
  }
PWRITEV(pwritev)
PWRITEV(pwritev64)

// -- what else is done to an open file
// ------------------------------------------------------------------------------

#define ON_DESCRIPTOR(group, name, parameters, arguments)                   \
  int name parameters {                                                     \
    Call call = on_descriptor(group, fd, "%s", "");                         \
    return (int)ended(&call, permitted(&call) ? REAL(name) arguments : -1); \
  }
ON_DESCRIPTOR("fsync", fsync, (int fd), (fd))
ON_DESCRIPTOR("fdatasync", fdatasync, (int fd), (fd))
ON_DESCRIPTOR("sync_file_range", sync_file_range, (int fd, off_t at, off_t length, unsigned flags),
              (fd, at, length, flags))
ON_DESCRIPTOR("ftruncate", ftruncate, (int fd, off_t length), (fd, length))
ON_DESCRIPTOR("ftruncate", ftruncate64, (int fd, off_t length), (fd, length))
ON_DESCRIPTOR("fallocate", fallocate, (int fd, int mode, off_t at, off_t length), (fd, mode, at, length))
ON_DESCRIPTOR("fallocate", fallocate64, (int fd, int mode, off_t at, off_t length), (fd, mode, at, length))
ON_DESCRIPTOR("fstat", fstat, (int fd, struct stat* into), (fd, into))
ON_DESCRIPTOR("fstat", fstat64, (int fd, struct stat64* into), (fd, into))
ON_DESCRIPTOR("fstatvfs", fstatvfs, (int fd, struct statvfs* into), (fd, into))
ON_DESCRIPTOR("flock", flock, (int fd, int operation), (fd, operation))
ON_DESCRIPTOR("fchmod", fchmod, (int fd, mode_t mode), (fd, mode))
ON_DESCRIPTOR("fchown", fchown, (int fd, uid_t owner, gid_t group), (fd, owner, group))
ON_DESCRIPTOR("futimens", futimens, (int fd, const struct timespec times[2]), (fd, times))
ON_DESCRIPTOR("fsetxattr", fsetxattr, (int fd, const char* name, const void* value, size_t size, int flags),
              (fd, name, value, size, flags))
ON_DESCRIPTOR("dup", dup, (int fd), (fd))
ON_DESCRIPTOR("dup", dup2, (int fd, int to), (fd, to))
ON_DESCRIPTOR("dup", dup3, (int fd, int to, int flags), (fd, to, flags))

off_t lseek(int fd, off_t offset, int whence) {
  Call call = on_descriptor("lseek", fd, "%jd", (intmax_t)offset);
  return ended(&call, permitted(&call) ? REAL(lseek)(fd, offset, whence) : -1);
}

// Locks and copies of descriptors can fail; what else fcntl does with a descriptor cannot.
static const char* kind_of_command(int command) {
  switch (command) {
    case F_GETLK:
    case F_SETLK:
    case F_SETLKW:
    case F_OFD_GETLK:
    case F_OFD_SETLK:
    case F_OFD_SETLKW:
      return "lock";
    case F_DUPFD:
    case F_DUPFD_CLOEXEC:
      return "dup";
    default:
      return "fcntl";
  }
}

#define WITH_ARGUMENT(group, name, request)                                              \
  int name(int fd, request command, ...) {                                               \
    va_list more;                                                                        \
    va_start(more, command);                                                             \
    void* const argument = va_arg(more, void*);                                          \
    va_end(more);                                                                        \
    Call call = on_descriptor(group, fd, "%ld", (long)command);                          \
    return (int)ended(&call, permitted(&call) ? REAL(name)(fd, command, argument) : -1); \
  }
WITH_ARGUMENT(kind_of_command(command), fcntl, int)
WITH_ARGUMENT(kind_of_command(command), fcntl64, int)
WITH_ARGUMENT("ioctl", ioctl, unsigned long)

// -- names
// ----------------------------------------------------------------------------------------------------------

#define ON_PATH(group, name, parameters, arguments, directory, path)        \
  int name parameters {                                                     \
    Call call = on_path(group, directory, path, "%s", "");                  \
    return (int)ended(&call, permitted(&call) ? REAL(name) arguments : -1); \
  }
ON_PATH("unlink", unlink, (const char* path), (path), AT_FDCWD, path)
ON_PATH("unlink", unlinkat, (int directory, const char* path, int flags), (directory, path, flags), directory,
        path)
ON_PATH("stat", stat, (const char* path, struct stat* into), (path, into), AT_FDCWD, path)
ON_PATH("stat", lstat, (const char* path, struct stat* into), (path, into), AT_FDCWD, path)
ON_PATH("stat", fstatat, (int directory, const char* path, struct stat* into, int flags),
        (directory, path, into, flags), directory, path)
ON_PATH("access", access, (const char* path, int mode), (path, mode), AT_FDCWD, path)

// The detail is the new name.
#define FROM_TO(group, name, parameters, arguments, from_directory, from, to) \
  int name parameters {                                                       \
    Call call = on_path(group, from_directory, from, "%s", to);               \
    return (int)ended(&call, permitted(&call) ? REAL(name) arguments : -1);   \
  }
FROM_TO("rename", rename, (const char* from, const char* to), (from, to), AT_FDCWD, from, to)
FROM_TO("rename", renameat, (int at, const char* from, int in, const char* to), (at, from, in, to), at, from,
        to)
FROM_TO("rename", renameat2, (int at, const char* from, int in, const char* to, unsigned flags),
        (at, from, in, to, flags), at, from, to)
FROM_TO("link", link, (const char* from, const char* to), (from, to), AT_FDCWD, from, to)
FROM_TO("link", linkat, (int at, const char* from, int in, const char* to, int flags),
        (at, from, in, to, flags), at, from, to)
