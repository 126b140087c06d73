#pragma once

#include <cstdio>
#include <cstdlib>

namespace qchain {

/// A condition that has to hold; else prints the line of the call and aborts.
inline void require(bool holds, int line = __builtin_LINE()) {
  if (holds) return;
  std::fprintf(stderr, "what line %d requires does not hold\n", line);
  std::abort();
}

}  // namespace qchain
