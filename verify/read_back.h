// What was restored, read again: is it what was written?
#pragma once

#include <cstdint>
#include <functional>

#include "extent/block_device.h"
#include "qcow2/chain.h"
#include "verify/chain_digests.h"
#include "verify/proof.h"

namespace qchain {

/// Reads `target` and compares it with the chain that was written to it: with its stored digests where they
/// are given, which then know all of the disk; else with the chain, which is read again. Throws Error where
/// either is gone.
Findings read_back(Chain& chain, BlockDevice& target, ChainDigests* digests, unsigned workers,
                   const std::function<void(std::uint64_t done)>& progress);

}  // namespace qchain
