// Verification of restored data by reading it back.
#pragma once

#include <cstdint>
#include <functional>

#include "extent/block_device.h"
#include "qcow2/chain.h"
#include "verify/chain_digests.h"
#include "verify/proof.h"

namespace qchain {

/// Reads `target` and compares it with the chain that was written to it: with `digests`, which have to be
/// complete; if nullptr, with the chain, which is read again. Throws Error if either cannot be read at all.
Findings read_back(Chain& chain, BlockDevice& target, ChainDigests* digests, unsigned workers,
                   const std::function<void(std::uint64_t done)>& progress);

}  // namespace qchain
