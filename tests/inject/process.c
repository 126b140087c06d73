// Calls for sockets, threads, memory and background writes.
#include <errno.h>
#include <libaio.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "plan.h"

// -- sockets
// --------------------------------------------------------------------------------------------------------

int socket(int domain, int type, int protocol) {
  Call call = on_nothing("socket", "%d", domain);
  return (int)ended(&call, permitted(&call) ? REAL(socket)(domain, type, protocol) : -1);
}

int connect(int fd, const struct sockaddr* address, socklen_t length) {
  Call call = on_descriptor("connect", fd, "%s", "");
  return (int)ended(&call, permitted(&call) ? REAL(connect)(fd, address, length) : -1);
}

int bind(int fd, const struct sockaddr* address, socklen_t length) {
  Call call = on_descriptor("bind", fd, "%s", "");
  return (int)ended(&call, permitted(&call) ? REAL(bind)(fd, address, length) : -1);
}

ssize_t recv(int fd, void* into, size_t length, int flags) {
  Call call = on_descriptor("recv", fd, "%zu", length);
  return ended(&call, permitted(&call) ? REAL(recv)(fd, into, shortened(&call, length), flags) : -1);
}

ssize_t send(int fd, const void* bytes, size_t length, int flags) {
  Call call = on_descriptor("send", fd, "%zu", length);
  return ended(&call, permitted(&call) ? REAL(send)(fd, bytes, shortened(&call, length), flags) : -1);
}

int poll(struct pollfd* descriptors, nfds_t count, int milliseconds) {
  Call call = on_nothing("poll", "%ju %d", (uintmax_t)count, milliseconds);
  return (int)ended(&call, permitted(&call) ? REAL(poll)(descriptors, count, milliseconds) : -1);
}

// -- threads, memory, randomness
// --------------------------------------------------------------------------------------

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*function)(void*),
                   void* argument) {
  Call call = on_nothing("pthread_create", "%s", "");
  return (int)ended(&call,
                    permitted(&call) ? REAL(pthread_create)(thread, attributes, function, argument) : errno);
}

#define MMAP(name)                                                                             \
  void* name(void* at, size_t length, int protection, int flags, int fd, off_t offset) {       \
    Call call = on_nothing("mmap", "%zu", length);                                             \
    void* const result =                                                                       \
        permitted(&call) ? REAL(name)(at, length, protection, flags, fd, offset) : MAP_FAILED; \
    ended(&call, result == MAP_FAILED ? -1 : 0);                                               \
    return result;                                                                             \
  }
MMAP(mmap)
MMAP(mmap64)

void* __libc_malloc(size_t size);
void* malloc(size_t size) { return permitted_quietly("malloc") ? __libc_malloc(size) : NULL; }
void* aligned_alloc(size_t alignment, size_t size) {
  return permitted_quietly("malloc") ? REAL(aligned_alloc)(alignment, size) : NULL;
}

ssize_t getrandom(void* into, size_t length, unsigned flags) {
  Call call = on_nothing("getrandom", "%zu", length);
  return ended(&call, permitted(&call) ? REAL(getrandom)(into, shortened(&call, length), flags) : -1);
}

// -- background writes: libaio returns errors as negative numbers
// ------------------------------------------------------

int io_setup(int most, io_context_t* context) {
  Call call = on_nothing("io_setup", "%d", most);
  return (int)ended(&call, permitted(&call) ? REAL(io_setup)(most, context) : -errno);
}

// A short one submits half.
int io_submit(io_context_t context, long count, struct iocb** commands) {
  if (count < 1) return REAL(io_submit)(context, count, commands);
  Call call = on_descriptor("io_submit", commands[0]->aio_fildes, "%ld", count);
  const int result =
      permitted(&call) ? REAL(io_submit)(context, (long)shortened(&call, (size_t)count), commands) : -errno;
  return (int)ended(&call, result);
}

// The end of each write is a call of its own, aio_result, recorded when it is known.
static void look_at_event(struct io_event* event) {
  const struct iocb* const command = event->obj;
  Call call = on_descriptor("aio_result", command->aio_fildes, "%lld+%ld", (long long)command->u.c.offset,
                            (long)event->res);
  if (!permitted(&call)) {
    event->res = (unsigned long)(-(long)errno);
  } else if (call.verdict == kShort && (long)event->res > 0) {
    event->res = shortened(&call, event->res);
  }
  ended(&call, (long)event->res);
}

int io_getevents(io_context_t context, long least, long most, struct io_event* events,
                 struct timespec* patience) {
  Call call = on_nothing("io_getevents", "%ld", most);
  const int result = permitted(&call) ? REAL(io_getevents)(context, least, most, events, patience) : -errno;
  ended(&call, result);
  for (int i = 0; i < result; ++i) look_at_event(&events[i]);
  return result;
}
