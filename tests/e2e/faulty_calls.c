/* Makes system calls of a program fail, for tests: a library to preload.

   FAULTS is a list of NAME[@N]=WHAT with commas between: from the first call of that name on, or at the N-th
   alone, it fails with an errno (EIO, ...), or the process is killed before the call (KILL) or after it
   (KILLED). Names: link, tmpfile (open with O_TMPFILE), rename, rename-flags (renameat2 with flags), unlink,
   fsync-file, fsync-dir, flock, getevents, aio (io_setup), seek (pwrite anywhere but at the end of the file).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { names = 11, kill_before = -1, kill_after = -2 };
static const char* const known[names] = {"link",      "tmpfile",    "rename",    "rename-flags",
                                         "unlink",    "fsync-file", "fsync-dir", "flock",
                                         "getevents", "aio",        "seek"};
static int calls[names];

static int number(const char* what, size_t length) {
  static const struct {
    const char* name;
    int value;
  } table[] = {{"EPERM", EPERM},   {"EIO", EIO},          {"EINVAL", EINVAL},    {"EOPNOTSUPP", EOPNOTSUPP},
               {"ENOLCK", ENOLCK}, {"ENOSPC", ENOSPC},    {"EMFILE", EMFILE},    {"ENOSYS", ENOSYS},
               {"ESPIPE", ESPIPE}, {"KILL", kill_before}, {"KILLED", kill_after}};
  for (size_t i = 0; i < sizeof table / sizeof *table; ++i)
    if (strlen(table[i].name) == length && !strncmp(table[i].name, what, length)) return table[i].value;
  abort();
}

/* What is to happen at this call: 0, an errno, or one of the kills. */
static int fault(const char* name) {
  int which = 0;
  while (strcmp(known[which], name)) ++which;
  int call = __atomic_add_fetch(&calls[which], 1, __ATOMIC_RELAXED);
  for (const char* at = getenv("FAULTS"); at && *at;) {
    size_t length = strcspn(at, ",");
    const char* equals = memchr(at, '=', length);
    if (!equals) abort();
    size_t key = strcspn(at, "@=");
    int when = at[key] == '@' ? atoi(at + key + 1) : 0;
    if (strlen(name) == key && !strncmp(at, name, key) && (!when || when == call)) {
      int what = number(equals + 1, length - (size_t)(equals + 1 - at));
      if (what == kill_before) kill(getpid(), SIGKILL);
      return what;
    }
    at += length + (at[length] == ',');
  }
  return 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CALL(fault_name, call)             \
  do {                                     \
    int what = fault(fault_name);          \
    if (what > 0) return errno = what, -1; \
    int result = (call);                   \
    if (what) kill(getpid(), SIGKILL);     \
    return result;                         \
  } while (0)

int link(const char* from, const char* to) { CALL("link", REAL(link)(from, to)); }
int linkat(int a, const char* from, int b, const char* to, int flags) {
  CALL("link", REAL(linkat)(a, from, b, to, flags));
}
int rename(const char* from, const char* to) { CALL("rename", REAL(rename)(from, to)); }
int renameat(int a, const char* from, int b, const char* to) {
  CALL("rename", REAL(renameat)(a, from, b, to));
}
int renameat2(int a, const char* from, int b, const char* to, unsigned flags) {
  CALL(flags ? "rename-flags" : "rename", REAL(renameat2)(a, from, b, to, flags));
}
int unlink(const char* path) { CALL("unlink", REAL(unlink)(path)); }
int unlinkat(int at, const char* path, int flags) { CALL("unlink", REAL(unlinkat)(at, path, flags)); }
int flock(int fd, int how) { CALL("flock", ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(fd, how)); }

static const char* kind(int fd) {
  struct stat found;
  return !fstat(fd, &found) && S_ISDIR(found.st_mode) ? "fsync-dir" : "fsync-file";
}
int fsync(int fd) { CALL(kind(fd), REAL(fsync)(fd)); }
int fdatasync(int fd) { CALL(kind(fd), REAL(fdatasync)(fd)); }

/* libaio gives errors as negative numbers; its symbols have versions, so that the kernel is asked. */
int io_getevents(void* context, long least, long most, void* events, void* timeout) {
  int what = fault("getevents");
  if (what > 0) return -what;
  long result = syscall(SYS_io_getevents, context, least, most, events, timeout);
  return result < 0 ? -errno : (int)result;
}
int io_setup(int most, void* context) {
  int what = fault("aio");
  if (what > 0) return -what;
  return syscall(SYS_io_setup, most, context) < 0 ? -errno : 0;
}

static int behind_end(int fd, off_t offset) {
  struct stat found;
  return !fstat(fd, &found) && S_ISREG(found.st_mode) && offset != found.st_size;
}
#define WRITE_AT(name, type, count)                                                                  \
  ssize_t name(int fd, type data, count length, off_t offset) {                                      \
    int what = behind_end(fd, offset) ? fault("seek") : 0;                                           \
    if (what > 0) return errno = what, -1;                                                           \
    return ((ssize_t(*)(int, type, count, off_t))dlsym(RTLD_NEXT, #name))(fd, data, length, offset); \
  }
WRITE_AT(pwrite, const void*, size_t)
WRITE_AT(pwrite64, const void*, size_t)
WRITE_AT(pwritev, const struct iovec*, int)
WRITE_AT(pwritev64, const struct iovec*, int)

#define OPEN(name, given, passed)                                             \
  int name given {                                                            \
    mode_t mode = 0;                                                          \
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {                \
      va_list more;                                                           \
      va_start(more, flags);                                                  \
      mode = va_arg(more, mode_t);                                            \
      va_end(more);                                                           \
    }                                                                         \
    if ((flags & O_TMPFILE) == O_TMPFILE) CALL("tmpfile", REAL(name) passed); \
    return REAL(name) passed;                                                 \
  }
OPEN(open, (const char* path, int flags, ...), (path, flags, mode))
OPEN(open64, (const char* path, int flags, ...), (path, flags, mode))
OPEN(openat, (int at, const char* path, int flags, ...), (at, path, flags, mode))
OPEN(openat64, (int at, const char* path, int flags, ...), (at, path, flags, mode))
