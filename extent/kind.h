#pragma once

#include <cstdint>

#include "extent/export.h"

namespace qchain {

/// What a range of the guest's disk is, in one layer.
enum class Kind : std::uint8_t {
  Inherit,  ///< Not here: the layer below has it. In a bottom layer: zeros.
  Zero,     ///< Reads as zeros, whatever the layer below holds.
  Data,     ///< Bytes that have to be read.
};

QCHAIN_API const char* to_string(Kind kind) noexcept;

}  // namespace qchain
