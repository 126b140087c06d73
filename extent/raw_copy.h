#pragma once

#include <cstdint>
#include <functional>

#include "extent/block_device.h"
#include "extent/copy_target.h"
#include "extent/scan.h"

namespace qchain {

struct CopyOptions {
  unsigned workers = 1;
  /// Called with the bytes of the range that have been processed, in guest order.
  std::function<void(std::uint64_t done)> progress = [](std::uint64_t) {};
  /// Watchers see what was read before any of it is written, in blocks of 64 KiB. May be empty.
  WatcherFactory make_watcher = {};
  /// Whether blocks that cannot be read become zeros and are reported to the watchers, which are needed then;
  /// else the copy fails.
  bool salvage = false;
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
