#include "extent/range.h"

#include <fmt/format.h>

#include <algorithm>

#include "extent/error.h"

namespace qchain {

std::uint64_t checked_add(std::uint64_t a, std::uint64_t b) {
  std::uint64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) {
    throw Error(Outcome::Mismatch, fmt::format("{:#x} + {:#x} exceeds 64 bits", a, b));
  }
  return sum;
}

std::uint64_t checked_multiply(std::uint64_t a, std::uint64_t b) {
  std::uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) {
    throw Error(Outcome::Mismatch, fmt::format("{:#x} * {:#x} exceeds 64 bits", a, b));
  }
  return product;
}

GuestRange guest_range(std::uint64_t begin, std::uint64_t length) {
  return {GuestOffset(begin), GuestOffset(begin) + length};
}

GuestRange intersect(const GuestRange& a, const GuestRange& b) {
  const GuestOffset begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

std::string to_string(const GuestRange& range) {
  return fmt::format("[{:#x}, {:#x})", range.begin.bytes(), range.end.bytes());
}

}  // namespace qchain
