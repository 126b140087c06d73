#include "plan.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char* functions;
static const char* always;
static const char* folder;
static const char* effect;
static long number;
static bool repeat;
static int log_descriptor = -1;
static atomic_bool started;
static atomic_long count;
static atomic_long sequence;

static void start(void) {
  functions = getenv("INJECT_FUNCTIONS");
  always = getenv("INJECT_ALWAYS");
  folder = getenv("INJECT_PATH");
  effect = getenv("INJECT_EFFECT");
  number = getenv("INJECT_NUMBER") != NULL ? atol(getenv("INJECT_NUMBER")) : 0;
  repeat = getenv("INJECT_REPEAT") != NULL;
  const char* log = getenv("INJECT_LOG");
  if (log != NULL) {
    const int opened =
        (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    // Out of the way of the program's own.
    log_descriptor = (int)syscall(SYS_fcntl, opened, F_DUPFD_CLOEXEC, 900);
    syscall(SYS_close, opened);
  }
  atomic_store(&started, true);
}

// -- main() begins the count
// --------------------------------------------------------------------------------------

typedef int Main(int, char**, char**);
typedef int Start(Main*, int, char**, void (*)(void), void (*)(void), void (*)(void), void*);
static Main* program;

static int counted_main(int argc, char** argv, char** environment) {
  start();
  return program(argc, argv, environment);
}

int __libc_start_main(Main* main, int argc, char** argv, void (*init)(void), void (*fini)(void),
                      void (*rtld_fini)(void), void* stack_end) {
  program = main;
  return ((Start*)dlsym(RTLD_NEXT, "__libc_start_main"))(counted_main, argc, argv, init, fini, rtld_fini,
                                                         stack_end);
}

// -- paths
// --------------------------------------------------------------------------------------------------------

static void path_of_link(char* into, const char* link) {
  const ssize_t length = readlink(link, into, PATH_MAX - 1);
  into[length < 0 ? 0 : length] = '\0';
}

static void path_of_descriptor(char* into, int descriptor) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  path_of_link(into, link);
}

static void absolute_path(char* into, int directory, const char* path) {
  if (strncmp(path, "/proc/self/fd/", 14) == 0) return path_of_link(into, path);
  if (path[0] == '/') {
    snprintf(into, PATH_MAX, "%s", path);
    return;
  }
  if (directory == AT_FDCWD) {
    path_of_link(into, "/proc/self/cwd");
  } else {
    path_of_descriptor(into, directory);
  }
  const size_t length = strlen(into);
  snprintf(into + length, PATH_MAX - length, "/%s", path);
}

static Call new_call(const char* function, const char* format, va_list detail) {
  Call call;
  call.function = function;
  call.path[0] = '\0';
  call.verdict = kPass;
  vsnprintf(call.detail, sizeof call.detail, format, detail);
  return call;
}

#define NEW_CALL(name)                            \
  const int error = errno;                        \
  va_list detail;                                 \
  va_start(detail, format);                       \
  Call name = new_call(function, format, detail); \
  va_end(detail)

Call on_descriptor(const char* function, int descriptor, const char* format, ...) {
  NEW_CALL(call);
  path_of_descriptor(call.path, descriptor);
  errno = error;
  return call;
}

Call on_path(const char* function, int directory, const char* path, const char* format, ...) {
  NEW_CALL(call);
  absolute_path(call.path, directory, path);
  errno = error;
  return call;
}

Call on_nothing(const char* function, const char* format, ...) {
  NEW_CALL(call);
  errno = error;
  return call;
}

// -- what becomes of a call
// -----------------------------------------------------------------------------------------

// Where a list names the function: what follows the name, or NULL.
static const char* find_in(const char* list, const char* function) {
  if (list == NULL) return NULL;
  const size_t length = strlen(function);
  for (const char* at = list; (at = strstr(at, function)) != NULL; at += length) {
    const char next = at[length];
    if ((at == list || at[-1] == ',') && (next == '\0' || next == ',' || next == ':')) return at + length;
  }
  return NULL;
}

static bool is_chosen(const char* function) { return find_in(functions, function) != NULL; }

// Sockets and pipes have names that are no paths.
static bool is_in_folder(const char* path) {
  return path[0] != '/' || folder == NULL || strncmp(path, folder, strlen(folder)) == 0;
}

static bool is_hit(void) {
  const long n = atomic_fetch_add(&count, 1) + 1;
  return effect != NULL && number > 0 && (n == number || (repeat && n > number));
}

static void record(const Call* call, const char* done, const char* result) {
  if (log_descriptor < 0) return;
  char line[3 * PATH_MAX];
  const int length =
      snprintf(line, sizeof line, "%ld\t%ld\t%s\t%s\t%s\t%s\t%s\n", call->begin,
               atomic_fetch_add(&sequence, 1), done, call->function, call->path, call->detail, result);
  syscall(SYS_write, log_descriptor, line, (size_t)length);
}

static Verdict decide(const Call* call) {
  if (!is_hit()) return kPass;
  if (strcmp(effect, "kill") == 0) {
    record(call, "kill", "");
    kill(getpid(), SIGKILL);
    for (;;) pause();
  }
  if (strncmp(effect, "signal:", 7) == 0) {
    record(call, "signal", "");
    kill(getpid(), atoi(effect + 7));
    return kPass;
  }
  return strcmp(effect, "short") == 0 ? kShort : kFail;
}

bool permitted(Call* call) {
  const int error = errno;
  call->begin = atomic_fetch_add(&sequence, 1);
  const bool counts = atomic_load(&started) && is_in_folder(call->path);
  call->verdict = counts && is_chosen(call->function) ? decide(call) : kPass;
  const char* const reason = counts && call->verdict == kPass ? find_in(always, call->function) : NULL;
  if (reason != NULL) {
    errno = atoi(reason + 1);
    return false;
  }
  errno = call->verdict == kFail ? atoi(effect) : error;
  return call->verdict != kFail;
}

size_t shortened(const Call* call, size_t length) {
  if (call->verdict != kShort || length < 2) return length;
  const size_t half = length / 2;
  return half < 512 ? half : half / 512 * 512;  // what O_DIRECT asks for
}

long ended(const Call* call, long result) {
  static const char* const kDone[] = {"pass", "fail", "short"};
  const int error = errno;
  if (atomic_load(&started) && is_in_folder(call->path)) {
    char text[64];
    if (result == -1) {
      snprintf(text, sizeof text, "-1 %s", strerrorname_np(error));
    } else {
      snprintf(text, sizeof text, "%ld", result);
    }
    record(call, kDone[call->verdict], text);
  }
  errno = error;
  return result;
}

bool permitted_quietly(const char* function) {
  if (!atomic_load(&started) || !is_chosen(function)) return true;
  Call call = on_nothing(function, "%s", "");
  call.begin = atomic_fetch_add(&sequence, 1);
  if (decide(&call) != kFail) return true;
  record(&call, "fail", "");
  errno = atoi(effect);
  return false;
}
