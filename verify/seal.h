#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "qcow2/chain.h"
#include "verify/signature.h"

namespace qchain {

/// What became of one layer's manifest.
enum class Sealed {
  Already,    ///< It had a manifest with a root.
  Completed,  ///< Its manifest had no root, or no signature, and has it now. Nothing of the layer was read.
  Written,    ///< It had none: what it holds was read, and the digests are of what is there now.
};

struct SealOptions {
  unsigned workers = 1;
  const SigningKey* key = nullptr;  ///< nullptr: manifests are not signed.
  std::function<void(std::uint64_t done)> progress = [](std::uint64_t) {};
};

/// Makes the manifest of layer `index` complete, once all beneath it have theirs. Throws Error: BadManifest
/// or Mismatch where it has one that does not fit, Mismatch where the disk is not what the layer records;
/// nothing is changed then.
Sealed seal_layer(const Chain& chain, std::size_t index, const SealOptions& options);

}  // namespace qchain
