#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "extent/range.h"

namespace qchain {

/// A uniform random sample of a stream of unknown length: Li's algorithm L, reservoir sampling with geometric
/// jumps, so that a terabyte of blocks is skipped in a few steps.
class Reservoir {
 public:
  Reservoir(std::size_t capacity, std::uint64_t seed);

  /// The next `count` items of the stream, of which the i-th is `first + i`.
  void add(std::uint64_t first, std::uint64_t count);
  /// The sample: in the order of the stream until it is full, then in no order.
  const std::vector<std::uint64_t>& items() const noexcept { return items_; }

 private:
  void jump();

  std::size_t capacity_;
  std::mt19937_64 random_;
  double weight_ = 1;
  std::uint64_t seen_ = 0;
  std::uint64_t next_ = 0;  // the item that is kept next
  std::vector<std::uint64_t> items_;
};

/// Chooses the clean blocks of a disk that are compared with the parent: both ends of the disk, neighbours of
/// dirty ranges, and a random sample. Blocks of 64 KiB, each by its index.
class CleanSample {
 public:
  static constexpr std::uint64_t kBlock = std::uint64_t{64} << 10;
  static constexpr std::uint64_t kMinBlocks = 64;
  static constexpr std::uint64_t kMaxBlocks = 4096;

  /// `disk`: bytes. The same seed and the same stream give the same sample.
  CleanSample(std::uint64_t disk, std::uint64_t seed);

  /// In guest order: a range that is reported as clean, and is data in the export and in the parent.
  /// `after_dirty`, `before_dirty`: the adjacent range is dirty.
  void add(const GuestRange& clean, bool after_dirty, bool before_dirty);

  /// The blocks to compare, in guest order. `share`: how many blocks of the random sample, clamped to
  /// kMinBlocks and kMaxBlocks, as far as there are so many.
  std::vector<std::uint64_t> blocks(std::uint64_t share) const;

 private:
  std::uint64_t disk_;
  Reservoir everywhere_;
  Reservoir neighbours_;
  std::vector<std::uint64_t> ends_;
};

}  // namespace qchain
