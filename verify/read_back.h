// What was restored, read again: is it what was written?
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "extent/block_device.h"
#include "qcow2/chain.h"
#include "verify/chain_digests.h"
#include "verify/proof.h"

namespace qchain {

/// What came of it. The lists are merged and capped, the numbers exact.
struct ReadBack {
  struct Difference {
    GuestRange range;     ///< Whole blocks by stored digests, sectors by the chain.
    std::string written;  ///< Of the first block: "sha256:HEX" or "zeros".
    std::string found;    ///< "sha256:HEX".
  };
  std::vector<Difference> differences;
  std::uint64_t different_bytes = 0;
  std::vector<Unreadable> unread;
  std::uint64_t unread_bytes = 0;
  std::uint64_t read_bytes = 0;

  Outcome outcome() const;
};

/// Reads `target` and holds it against the chain that was written to it: against its stored digests where
/// they are given, which then know all of the disk; else against the chain, which is read again. Throws Error
/// where either is gone.
ReadBack read_back(Chain& chain, BlockDevice& target, ChainDigests* digests, unsigned workers,
                   const std::function<void(std::uint64_t done)>& progress);

}  // namespace qchain
