#pragma once

#include <cstdint>
#include <functional>

#include "extent/block_device.h"
#include "extent/stage.h"
#include "verify/digest.h"

namespace qchain {

struct DigestOptions {
  Algorithm algorithm = Algorithm::Sha256;
  unsigned workers = 1;
  /// Called with the bytes of the disk that have been dealt with, in order.
  std::function<void(std::uint64_t done)> progress = [](std::uint64_t) {};
};

/// Adds what is read to `disk`, in blocks of kDigestBlock. It has to outlive the stages.
StageFactory digest_stage(DiskDigest& disk, Algorithm algorithm);

/// The content digest of the first `length` bytes of a disk: what is known to be zeros is not read.
/// Throws Error.
Digest digest_of(BlockDevice& device, std::uint64_t length, const DigestOptions& options);

}  // namespace qchain
