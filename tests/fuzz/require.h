#pragma once

#include <cstdio>
#include <cstdlib>

namespace qchain {

/// What a fuzzer holds the code to: where it does not hold, the process ends, and the line of the call is
/// printed.
inline void require(bool holds, int line = __builtin_LINE()) {
  if (holds) return;
  std::fprintf(stderr, "what line %d requires does not hold\n", line);
  std::abort();
}

}  // namespace qchain
