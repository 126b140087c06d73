#pragma once

#include <cstdint>
#include <vector>

#include "extent/range.h"

namespace qchain {

/// Which part of the disk is checked; by default, everything.
struct Selection {
  /// Part `part`, from 1 to `parts`; together the parts cover the disk. It is divided in stripes.
  unsigned part = 1;
  unsigned parts = 1;
  /// If not empty: only these ranges, sorted, extended to whole blocks.
  std::vector<GuestRange> only;

  bool is_everything() const { return parts == 1 && only.empty(); }
  static constexpr unsigned kMaxParts = 1000000;
  static constexpr std::uint64_t kStripe = std::uint64_t{16} << 20;
};

}  // namespace qchain
