// The structures of an image that the header, the snapshot table and the bitmap directory point to.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "qcow2/image.h"
#include "verify/finding.h"
#include "verify/reference_count.h"

namespace qchain {

/// A structure at [at, at + length) of the file; it may extend past the end of the file.
struct Region {
  Structure structure = Structure::Header;
  HostOffset at;
  std::uint64_t length = 0;  ///< In bytes; not 0.
  HostOffset pointer;        ///< The location of the pointer to it.
  /// The number of references: snapshots can share an L1 table.
  std::uint32_t references = 1;
  /// For an L1 table: the visible size of the disk, in bytes.
  std::uint64_t visible = 0;

  bool is_l1() const { return structure == Structure::L1Table || structure == Structure::SnapshotL1Table; }
};

/// Lists them, and checks the pointers to them. A structure at an invalid offset is a finding and is left
/// out. Bitmaps that are not current are left out too, as QEMU does: their clusters are leaked.
std::vector<Region> take_inventory(const Image& image, FindingList& findings);

}  // namespace qchain
