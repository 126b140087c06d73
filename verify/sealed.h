#pragma once

#include <cstdint>

namespace qchain {

/// What became of one layer's manifest.
enum class Sealed : std::uint8_t {
  Already,    ///< It had a manifest with a root.
  Completed,  ///< Its manifest had no root, or no signature, and has it now. Nothing of the layer was read.
  Written,    ///< It had none: what it holds was read, and the digests are of what is there now.
  Rewritten,  ///< The same, of a layer that another tool has rewritten: it had one that does not match any
              ///< more.
};

}  // namespace qchain
