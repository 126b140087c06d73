#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "extent/block_device.h"
#include "qcow2/chain.h"
#include "verify/digest.h"
#include "verify/proof.h"

namespace qchain {

struct CompareOptions {
  Algorithm algorithm = Algorithm::Sha256;
  unsigned workers = 1;
  std::function<void(std::uint64_t done)> progress = [](std::uint64_t) {};
  /// The digests of the chain, of `algorithm`: a third side. nullptr: there is none.
  ChainDigests* stored = nullptr;
  RestorePoints* points = nullptr;  ///< With `stored`: the manifests that they are from.
  Selection selection;
  std::optional<std::chrono::steady_clock::time_point> deadline;
};

/// Findings of a comparison: `found` is of the chain, `live` of the other side, `expected` what a manifest
/// says. read_bytes are those of one side.
struct Comparison : Findings {
  std::array<std::uint64_t, kCauses> bytes_of{};  ///< different_bytes by cause.
  std::uint64_t compared_bytes = 0;               ///< Of the disk: read, or known to be zeros on both sides.
  std::uint64_t unknown_bytes = 0;                ///< Of them: no stored digest says what they should be.
  std::optional<std::uint64_t> stopped_at;        ///< Where the deadline stopped it.
  /// Content digests of both sides; nullopt where not all was read.
  std::optional<Digest> live;
  std::optional<Digest> chain;
};

/// Reads `chain` and `live` side by side and compares them, every byte of the longer one: what the shorter
/// one lacks counts as different, but for the zeros that fill a last sector. Where either side may hold data,
/// both are read; where both are known to be zeros, they are equal. A block that differs is read a second
/// time from the live side, to see whether that side is moving. What cannot be read is noted, and the rest is
/// compared all the same. Where there are stored digests, every block is compared with them too, and they
/// tell which side is wrong. Throws Error where a side is gone altogether.
Comparison compare(Chain& chain, BlockDevice& live, const CompareOptions& options);

}  // namespace qchain
