#include "extent/zero.h"

#include <algorithm>
#include <cstring>

namespace qchain {

bool is_zero(std::span<const std::byte> bytes) noexcept {
  // Most data shows itself in its first bytes; for the rest, comparing the buffer with itself a few
  // bytes further on lets the C library's vectorised memcmp do the work.
  constexpr std::size_t kHead = 16;
  const std::size_t head = std::min(bytes.size(), kHead);
  for (std::size_t i = 0; i < head; ++i) {
    if (bytes[i] != std::byte{0}) return false;
  }
  return bytes.size() <= kHead || std::memcmp(bytes.data(), bytes.data() + kHead, bytes.size() - kHead) == 0;
}

}  // namespace qchain
