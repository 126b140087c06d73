// Offsets and ranges of the two address spaces. Guest minus host does not compile; addition is
// checked; ranges are half-open.
#pragma once

#include <compare>
#include <cstdint>
#include <string>

#include "extent/export.h"

namespace qchain {

inline constexpr std::uint64_t kSectorSize = 512;

/// a + b; throws Error (Mismatch) on overflow, which only corrupt or hostile input causes.
QCHAIN_API std::uint64_t checked_add(std::uint64_t a, std::uint64_t b);
/// a * b, likewise.
QCHAIN_API std::uint64_t checked_multiply(std::uint64_t a, std::uint64_t b);

/// The multiple of `unit` (> 0, any value) at or below `value`.
constexpr std::uint64_t align_down(std::uint64_t value, std::uint64_t unit) { return value - value % unit; }
/// The multiple of `unit` at or above `value`; throws Error if that overflows.
inline std::uint64_t align_up(std::uint64_t value, std::uint64_t unit) {
  return align_down(checked_add(value, unit - 1), unit);
}
/// How many pieces of `unit` hold `value`.
constexpr std::uint64_t divide_up(std::uint64_t value, std::uint64_t unit) {
  return value / unit + (value % unit != 0 ? 1 : 0);
}

/// A byte offset in one address space.
template <class Space>
class Offset {
 public:
  constexpr Offset() = default;
  constexpr explicit Offset(std::uint64_t bytes) : bytes_(bytes) {}
  constexpr std::uint64_t bytes() const { return bytes_; }

  friend constexpr auto operator<=>(Offset, Offset) = default;
  friend Offset operator+(Offset a, std::uint64_t length) { return Offset(checked_add(a.bytes_, length)); }
  /// The distance from `b` to `a`; requires b <= a.
  friend constexpr std::uint64_t operator-(Offset a, Offset b) { return a.bytes_ - b.bytes_; }

 private:
  std::uint64_t bytes_ = 0;
};

/// Where a byte is on the disk that the guest sees.
using GuestOffset = Offset<struct GuestSpace>;
/// Where a byte is in the file that holds it.
using HostOffset = Offset<struct HostSpace>;

/// Bytes [begin, end) of the guest's disk.
struct GuestRange {
  GuestOffset begin;
  GuestOffset end;

  constexpr std::uint64_t length() const { return end - begin; }
  constexpr bool empty() const { return end <= begin; }
  friend constexpr bool operator==(const GuestRange&, const GuestRange&) = default;
};

/// `length` bytes from `begin` on.
QCHAIN_API GuestRange guest_range(std::uint64_t begin, std::uint64_t length);
/// The intersection of two ranges; empty (begin == end) if they have nothing in common.
QCHAIN_API GuestRange intersect(const GuestRange& a, const GuestRange& b);
/// "[0x10000, 0x20000)".
QCHAIN_API std::string to_string(const GuestRange& range);

}  // namespace qchain
