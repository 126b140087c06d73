#pragma once

#include <cstddef>
#include <span>

namespace qchain {

/// Whether every byte is zero. True for no bytes at all.
bool is_zero(std::span<const std::byte> bytes) noexcept;

}  // namespace qchain
