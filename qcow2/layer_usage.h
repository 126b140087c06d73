#pragma once

#include <cstdint>

namespace qchain {

/// The bytes that one layer holds itself, by kind.
struct LayerUsage {
  std::uint64_t data = 0;  ///< Including compressed, counted as guest bytes.
  std::uint64_t zero = 0;
  std::uint64_t inherit = 0;
};

}  // namespace qchain
