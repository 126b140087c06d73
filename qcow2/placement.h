// Where everything goes in a new image: a pure state machine from guest-ordered clusters to host
// offsets and finished tables. No file is needed to run it: a dry run is a measurement.
//
//     | header | data ... L2 | data ... L2 | ... | L1 | refcount table | refcount blocks |
//
// Clusters are placed in guest order, so the same input gives the same bytes. A table leaves memory as
// soon as the cursor has passed what it covers; a refcount block that fills up in the middle of the data
// is placed there. Streams of compressed clusters are packed to the byte and may share host clusters;
// everything else is referenced once, so its entry carries COPIED.
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
  /// Throws Error (Usage) where the disk needs an L1 table above QEMU's limit.
  explicit Placement(const Geometry& geometry);

  // Indices of guest clusters only ever grow, over these functions; what is left out is unallocated.

  /// Gives guest cluster `index` a host cluster. Bit i of `data` and of `zero` says what its unit i is
  /// (a standard cluster has unit 0 only); units with neither are unallocated. `data` is not 0.
  HostOffset place_data(std::uint64_t index, std::uint32_t data, std::uint32_t zero);
  /// Gives it room for a compressed stream of `length` bytes, less than a cluster.
  HostOffset place_compressed(std::uint64_t index, std::uint64_t length);
  /// Marks the units in `zero` of cluster `index` as zeros, and allocates nothing.
  void place_zero(std::uint64_t index, std::uint32_t zero);

  /// The tables that were finished since the last call.
  std::vector<FinishedTable> take_finished();

  /// Places what is left. Fills in the fields of `header` that say where the tables are.
  void finish(Header& header);

  /// Length of the file so far, in bytes.
  std::uint64_t file_bytes() const { return next_ * geometry_.cluster_size(); }

 private:
  HostOffset allocate(std::uint64_t clusters);
  /// Adds to the refcount of a host cluster, and returns what it was.
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
  std::vector<PageBuffer> l1_;      // by chunks of l1_chunk_ bytes; an empty one refers to nothing
  std::uint64_t l1_index_ = kNone;  // of the L2 table in l2_
  PageBuffer l2_;
  std::vector<HostOffset> refcount_blocks_;  // those that have been placed
  // The end of the last compressed stream, and where the room for the next one ends: in the middle of a
  // host cluster, or equal.
  std::uint64_t stream_at_ = 0;
  std::uint64_t stream_end_ = 0;
  // By index: those that are not placed yet. One, or two for a moment.
  std::map<std::uint64_t, PageBuffer> open_blocks_;
  std::vector<FinishedTable> finished_;
};

}  // namespace qchain
