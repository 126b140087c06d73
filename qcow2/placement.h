// The layout of a new image: a pure state machine from guest-ordered clusters to host offsets and finished
// tables. It does no I/O.
//
//     | header | data ... L2 | data ... L2 | ... | L1 | refcount table | refcount blocks |
//
// Clusters are placed in guest order, so the same input gives the same bytes. A table is finished, and leaves
// memory, as soon as the cursor has passed the range that it covers; a refcount block that fills up is placed
// between the data. Streams of compressed clusters are packed to the byte and may share host clusters;
// everything else is referenced once, so its entry has COPIED set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "extent/page_buffer.h"
#include "qcow2/entry.h"
#include "qcow2/geometry.h"
#include "qcow2/header.h"

namespace qchain {

/// Whole clusters of metadata, ready to be written.
struct FinishedTable {
  HostOffset at;
  PageBuffer bytes;
};

class Placement {
 public:
  /// Throws Error (Usage) if the disk needs an L1 table above QEMU's limit.
  explicit Placement(const Geometry& geometry);

  // The indices of guest clusters must increase from call to call of these functions; clusters that are left
  // out are unallocated.

  /// Allocates a host cluster for guest cluster `index`. Bit i of `data` and of `zero` is the kind of its
  /// unit i (a standard cluster has unit 0 only); units with neither are unallocated. `data` is not 0.
  HostOffset place_data(std::uint64_t index, std::uint32_t data, std::uint32_t zero);
  /// Allocates space for a compressed stream of `length` bytes, less than a cluster.
  HostOffset place_compressed(std::uint64_t index, std::uint64_t length);
  /// Marks the units in `zero` of cluster `index` as zeros, and allocates nothing.
  void place_zero(std::uint64_t index, std::uint32_t zero);

  /// The tables that were finished since the last call.
  std::vector<FinishedTable> take_finished();

  /// Places the remaining tables. Fills in the fields of `header` that locate the tables.
  void finish(Header& header);

  /// Length of the file so far, in bytes.
  std::uint64_t file_bytes() const { return next_ * geometry_.cluster_size(); }

 private:
  HostOffset allocate(std::uint64_t clusters);
  /// Adds to the refcount of a host cluster, and returns its old value.
  unsigned count(std::uint64_t cluster, unsigned references);
  HostOffset allocate_stream(std::uint64_t length);
  void place_full_blocks();
  void place_last_blocks();
  void enter_l2(std::uint64_t l1_index);
  void close_l2();
  void set_l1(std::uint64_t index, const L1Entry& entry);
  HostOffset place_l1();
  void set_entry(std::uint64_t index, const L2Entry& entry);
  std::uint64_t refcount_table_clusters() const;
  HostOffset host(std::uint64_t cluster) const { return HostOffset(cluster * geometry_.cluster_size()); }

  static constexpr std::uint64_t kNone = ~std::uint64_t{0};

  const Geometry geometry_;
  const std::uint64_t refcounts_per_block_;
  const std::uint64_t l1_entries_;
  const std::uint64_t l1_chunk_;    // whole clusters, in bytes
  std::uint64_t next_ = 0;          // the first host cluster that is free
  std::vector<PageBuffer> l1_;      // in chunks of l1_chunk_ bytes; an empty one is all zeros
  std::uint64_t l1_index_ = kNone;  // of the L2 table in l2_
  PageBuffer l2_;
  std::vector<HostOffset> refcount_blocks_;  // those that have been placed
  // The end of the last compressed stream, and of the cluster that has free space for the next one; equal if
  // there is none.
  std::uint64_t stream_at_ = 0;
  std::uint64_t stream_end_ = 0;
  // Refcount blocks that are not placed yet, by index: one, or temporarily two.
  std::map<std::uint64_t, PageBuffer> open_blocks_;
  std::vector<FinishedTable> finished_;
};

}  // namespace qchain
