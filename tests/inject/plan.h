// Which calls of the C library fail: counts them, decides, and records them.
//
// Set in the environment of the program under test:
//
// - INJECT_FUNCTIONS: comma-separated names as in this folder's sources ("fsync,rename"), counted together.
// - INJECT_NUMBER: the call that is hit, from 1.
// - INJECT_EFFECT: "kill" (SIGKILL before the call), "signal:N" (that signal before the call), "short" (reads
//   and writes do half), or the number of an errno.
// - INJECT_REPEAT: if set, every call from that one on is hit.
// - INJECT_ALWAYS: comma-separated FUNCTION:ERRNO, calls that always fail, beside the one that is hit.
// - INJECT_PATH: if set, calls on files count only below this folder; calls on anything else always count.
// - INJECT_LOG: if set, a file to which every call is appended, a line each, with tabs between the fields:
//   sequence numbers of its begin and its end, what was done ("pass", "fail", "short", "kill", "signal"),
//   function, path, detail, result.
//
// Calls before main() are neither counted nor recorded. Memory is recorded only where it is hit.
#pragma once

#include <dlfcn.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

typedef enum { kPass, kFail, kShort } Verdict;

typedef struct {
  const char* function;
  char path[PATH_MAX];
  char detail[PATH_MAX + 64];
  long begin;
  Verdict verdict;
} Call;

// A call on an open file, on a name, or on neither. The rest is the detail, as printf takes it.
Call on_descriptor(const char* function, int descriptor, const char* format, ...)
    __attribute__((format(printf, 3, 4)));
Call on_path(const char* function, int directory, const char* path, const char* format, ...)
    __attribute__((format(printf, 4, 5)));
Call on_nothing(const char* function, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Whether the call is to be made. If not, errno says why.
bool permitted(Call* call);
// Of the bytes that were asked for, those that are to be done.
size_t shortened(const Call* call, size_t length);
// Records the call, and returns its result; errno stays as it is.
long ended(const Call* call, long result);
// As permitted(), for calls that are many and have neither path nor detail.
bool permitted_quietly(const char* function);

// The function of that name that would have been called.
#define REAL(name)                                                         \
  ({                                                                       \
    static __typeof__(&name) found;                                        \
    if (found == NULL) found = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
    found;                                                                 \
  })
