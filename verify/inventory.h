// The structures of an image whose places do not depend on the mapping of the disk: what the
// header, the snapshot table and the bitmap directory point to.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "qcow2/image.h"
#include "verify/finding.h"
#include "verify/reference_count.h"

namespace qchain {

/// A structure that fills [at, at + length) of the file, as far as the file goes.
struct Region {
  Structure structure = Structure::Header;
  HostOffset at;
  std::uint64_t length = 0;  ///< Bytes, not 0.
  HostOffset pointer;        ///< Where its offset is recorded.
  /// How many alike there are: snapshots can share an L1 table.
  std::uint32_t references = 1;
  /// Of an L1 table: bytes of the disk that somebody can see through it.
  std::uint64_t visible = 0;

  bool is_l1() const { return structure == Structure::L1Table || structure == Structure::SnapshotL1Table; }
};

/// Finds them, and judges what points to them. A structure that is not where one can be is a
/// finding and is left out. Bitmaps that are not current are left out too, as QEMU does: their
/// clusters are leaks.
std::vector<Region> take_inventory(const Image& image, FindingList& findings);

}  // namespace qchain
