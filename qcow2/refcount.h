#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "extent/range.h"

namespace qchain {

inline constexpr std::uint64_t kRefcountTableReserved = 0x1FF;  // bits of an entry that must be 0

/// How many refcounts a block of `cluster_size` bytes holds. A refcount has 1 << `order` bits.
constexpr std::uint64_t refcounts_per_block(std::uint64_t cluster_size, unsigned order) {
  return cluster_size * 8 >> order;
}

/// Refcount `index` of a block. Widths below a byte fill it from its least significant bit.
std::uint64_t decode_refcount(std::span<const std::byte> block, std::uint64_t index, unsigned order);

/// The byte offset of refcount `index` in a block.
constexpr std::uint64_t refcount_position(std::uint64_t index, unsigned order) {
  return (index << order) / 8;
}

}  // namespace qchain
