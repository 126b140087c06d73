#pragma once

#include <cstdint>

#include "extent/range.h"

namespace qchain {

// QEMU's limits, which are enforced here too before anything is allocated.
inline constexpr unsigned kMinClusterBits = 9;
inline constexpr unsigned kMaxClusterBits = 21;
inline constexpr std::uint64_t kMaxL1Bytes = std::uint64_t{32} << 20;
inline constexpr std::uint64_t kMaxRefcountTableBytes = std::uint64_t{8} << 20;
inline constexpr unsigned kMaxRefcountOrder = 6;
inline constexpr unsigned kSubclustersPerCluster = 32;
inline constexpr unsigned kMinExtendedL2ClusterBits = 14;

/// The sizes in an image that follow from cluster_bits, extended L2 and the virtual size. Plain arithmetic;
/// valid for every value within QEMU's limits.
class Geometry {
 public:
  Geometry(unsigned cluster_bits, bool extended_l2, std::uint64_t virtual_size)
      : cluster_bits_(cluster_bits), extended_l2_(extended_l2), virtual_size_(virtual_size) {}

  unsigned cluster_bits() const { return cluster_bits_; }
  bool extended_l2() const { return extended_l2_; }
  /// Bytes of the disk.
  std::uint64_t virtual_size() const { return virtual_size_; }
  std::uint64_t cluster_size() const { return std::uint64_t{1} << cluster_bits_; }
  /// Bytes of the smallest range that has a kind of its own.
  std::uint64_t unit() const {
    return extended_l2_ ? cluster_size() / kSubclustersPerCluster : cluster_size();
  }

  /// Units in a cluster: 32 subclusters, or the cluster itself.
  unsigned units_per_cluster() const { return extended_l2_ ? kSubclustersPerCluster : 1; }
  /// The bits of all of a cluster's units.
  std::uint32_t all_units() const { return extended_l2_ ? ~std::uint32_t{0} : 1; }

  std::uint64_t l2_entry_bytes() const { return extended_l2_ ? 16 : 8; }
  /// Entries of one L2 table, which fills one cluster.
  std::uint64_t l2_entries() const { return cluster_size() / l2_entry_bytes(); }
  /// Bytes of the disk that one L2 table maps.
  std::uint64_t l2_coverage() const { return l2_entries() * cluster_size(); }
  /// Entries that the L1 table needs.
  std::uint64_t l1_entries() const { return divide_up(virtual_size_, l2_coverage()); }

  std::uint64_t offset_in_cluster(std::uint64_t offset) const { return offset & (cluster_size() - 1); }

 private:
  unsigned cluster_bits_;
  bool extended_l2_;
  std::uint64_t virtual_size_;
};

}  // namespace qchain
