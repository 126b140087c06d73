#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "extent/block_device.h"
#include "qcow2/chain.h"
#include "verify/digest.h"

namespace qchain {

/// A range where the chain is not what the live export is, and who supplied the chain's bytes.
struct Difference {
  GuestRange range;
  Mapping source;            ///< Layer and host offset of the chain's bytes.
  bool live_moved = false;   ///< The live side read differently a second time.
  std::string live_digest;   ///< Of the first block that differs, "sha256:HEX".
  std::string chain_digest;  ///< Of the same block.
};

/// A block that one side could not give.
struct Unread {
  GuestRange range;
  Outcome outcome = Outcome::Io;  ///< Io, or Mismatch where the chain's metadata is corrupt.
  std::string message;
};

struct CompareOptions {
  Algorithm algorithm = Algorithm::Sha256;
  unsigned workers = 1;
  std::function<void(std::uint64_t done)> progress = [](std::uint64_t) {};
};

struct Comparison {
  /// Merged into ranges and capped; different_bytes is exact.
  std::vector<Difference> differences;
  std::uint64_t different_bytes = 0;  ///< Bytes of the ranges that differ, to the sector.
  std::vector<Unread> unread;         ///< Capped, as the differences are; unread_bytes is exact.
  std::uint64_t unread_bytes = 0;
  bool live_moved = false;
  std::uint64_t compared_bytes = 0;  ///< Of the disk: read, or known to be zeros on both sides.
  std::uint64_t read_bytes = 0;      ///< From each side.
  Digest live;                       ///< Content digest of the live side, if all was read.
  Digest chain;                      ///< Content digest of the chain, if all was read.
};

/// Reads `chain` and `live` side by side and compares them, every byte of the longer one: what the shorter
/// one lacks counts as different, but for the zeros that fill a last sector. Where either side may hold data,
/// both are read; where both are known to be zeros, they are equal. A block that differs is read a second
/// time from the live side, to see whether that side is moving. What cannot be read is noted, and the rest is
/// compared all the same. Throws Error where a side is gone altogether.
Comparison compare(Chain& chain, BlockDevice& live, const CompareOptions& options);

}  // namespace qchain
