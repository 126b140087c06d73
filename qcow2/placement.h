// Where everything goes in a new image: a pure state machine from guest-ordered clusters to host
// offsets and finished tables. No file is needed to run it: a dry run is a measurement.
//
//     | header | data ... L2 | data ... L2 | ... | L1 | refcount table | refcount blocks |
//
// Clusters are placed in guest order, so the same input gives the same bytes. A table leaves memory as
// soon as the cursor has passed what it covers; a refcount block that fills up in the middle of the data
// is placed there. Everything is referenced once, so every entry carries COPIED.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "qcow2/entry.h"
#include "qcow2/geometry.h"
#include "qcow2/header.h"

namespace qchain {

/// Whole clusters of metadata, ready to be written.
struct FinishedTable {
  HostOffset at;
  std::vector<std::byte> bytes;
};

class Placement {
 public:
  /// Throws Error (Usage) where the disk needs an L1 table above QEMU's limit.
  explicit Placement(const Geometry& geometry);

  /// Gives guest cluster `index` a host cluster. Indices only ever grow, over both functions; what is
  /// left out is unallocated.
  HostOffset place_data(std::uint64_t index);
  /// Marks clusters [first, first + count) as zeros.
  void place_zero(std::uint64_t first, std::uint64_t count);

  /// The tables that were finished since the last call.
  std::vector<FinishedTable> take_finished();

  /// Places what is left. Fills in the fields of `header` that say where the tables are.
  void finish(Header& header);

  /// Length of the file so far, in bytes.
  std::uint64_t file_bytes() const { return next_ * geometry_.cluster_size(); }

 private:
  HostOffset allocate(std::uint64_t clusters);
  void count(std::uint64_t cluster);
  void place_full_blocks();
  void place_last_blocks();
  void enter_l2(std::uint64_t l1_index);
  void close_l2();
  void set_entry(std::uint64_t index, const L2Entry& entry);
  std::uint64_t refcount_table_clusters() const;
  HostOffset host(std::uint64_t cluster) const {
    return HostOffset(cluster * geometry_.cluster_size());
  }

  static constexpr std::uint64_t kNone = ~std::uint64_t{0};

  const Geometry geometry_;
  const std::uint64_t refcounts_per_block_;
  std::uint64_t next_ = 0;  // the first host cluster that is free
  std::vector<std::uint64_t> l1_;
  std::uint64_t l1_index_ = kNone;  // of the L2 table in l2_
  std::vector<std::byte> l2_;
  std::vector<HostOffset> refcount_blocks_;  // those that have been placed
  // By index: those that are not placed yet. One, or two for a moment.
  std::map<std::uint64_t, std::vector<std::byte>> open_blocks_;
  std::vector<FinishedTable> finished_;
};

}  // namespace qchain
