#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "extent/block_device.h"

namespace qchain {

/// A few sectors of what was read, to recognise a disk by: the first, the last, and some in between.
class ReadSamples {
 public:
  struct Sample {
    GuestOffset begin;
    std::size_t length = 0;
    std::array<std::byte, kSectorSize> bytes{};

    std::span<const std::byte> content() const { return std::span(bytes).first(length); }
  };
  static constexpr std::size_t kMax = 16;

  /// Takes a sector of what `request` has read.
  void add(const ReadRequest& request);
  /// In the order of reading, up to kMax.
  std::vector<Sample> all() const;

 private:
  std::vector<Sample> kept_;  // the first, and every stride_-th after it
  Sample last_;
  std::uint64_t seen_ = 0;
  std::uint64_t stride_ = 1;
};

/// A sample of `request`: the first of a few places that is not all zeros.
ReadSamples::Sample sample_of(const ReadRequest& request);

}  // namespace qchain
