#include "qcow2/refcount.h"

#include "qcow2/format.h"

namespace qchain {

std::uint64_t decode_refcount(std::span<const std::byte> block, std::uint64_t index, unsigned order) {
  const std::byte* const at = block.data() + refcount_position(index, order);
  switch (order) {
    case 3:
      return std::to_integer<std::uint64_t>(*at);
    case 4:
      return decode_struct<Be16>(at);
    case 5:
      return decode_struct<Be32>(at);
    case 6:
      return decode_struct<Be64>(at);
    default: {
      const unsigned bits = 1U << order;
      const auto shift = static_cast<unsigned>((index << order) % 8);
      return std::to_integer<std::uint64_t>(*at) >> shift & ((1U << bits) - 1);
    }
  }
}

}  // namespace qchain
