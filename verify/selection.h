#pragma once

#include <cstdint>
#include <vector>

#include "extent/range.h"

namespace qchain {

/// Which part of the disk is looked at. Everything, by default.
struct Selection {
  /// Part `part` (from 1 on) of `parts` that together are everything: the disk is dealt out in stripes.
  unsigned part = 1;
  unsigned parts = 1;
  /// Where not empty: nothing but these ranges, in order, extended to whole blocks.
  std::vector<GuestRange> only;

  bool is_everything() const { return parts == 1 && only.empty(); }
  static constexpr unsigned kMaxParts = 1000000;
  static constexpr std::uint64_t kStripe = std::uint64_t{16} << 20;
};

}  // namespace qchain
