#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "extent/block_device.h"
#include "extent/copy_target.h"
#include "extent/stage.h"

namespace qchain {

struct CopyOptions {
  unsigned workers = 1;
  /// Called with the bytes of the range that have been processed, in guest order.
  std::function<void(std::uint64_t done)> progress = [](std::uint64_t) {};
  /// What is done with each batch before any of it is written. Pieces consist of blocks of 64 KiB.
  std::vector<StageFactory> stages = {};
};

struct CopyResult {
  std::uint64_t data_bytes = 0;  ///< Read from the source.
  std::uint64_t zero_bytes = 0;  ///< Known or found to be zeros.
};

/// Writes bytes `range` of `source` to `target`, from its offset 0 on. Does not make anything durable. Throws
/// Error.
CopyResult copy_raw(BlockDevice& source, const GuestRange& range, CopyTarget& target,
                    const CopyOptions& options);
/// The same to a file; one with Zeros gets the length of the range.
CopyResult copy_raw(BlockDevice& source, const GuestRange& range, const File& target, TargetContent content,
                    const CopyOptions& options);

}  // namespace qchain
