#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "extent/nbd_export.h"
#include "qcow2/chain.h"

namespace qchain {

/// What a layer on top of `parent` has to hold so that the two together are what the export is.
///
/// Past the parent's end everything counts as changed: inherited bytes read as zeros there.
///
/// A bitmap can lie: where a disk was made smaller and larger again, its bits are clean over data that is
/// gone. Such a range reads as zeros on the live side while the parent holds something else; and where the
/// cut was inside a cluster, QEMU may have filled the rest of that cluster with zeros that it calls data. So
/// zeros that are said to be clean are held against the parent, and data that is said to be clean is read and
/// compared where a cut may have been: before such zeros, and at the end of the disk. What differs is taken
/// as changed, and is counted.
class Increment : public BlockDevice {
 public:
  /// Both have to outlive this. The export was opened with a source of changes.
  Increment(NbdExport& live, Chain& parent);

  std::string name() const override { return live_.name(); }
  std::uint64_t size() const override { return live_.size(); }
  Extents extents(const GuestRange& range) override;
  std::unique_ptr<Reader> open_reader() override { return live_.open_reader(); }

  /// Whether the disk has another size than the parent: where it was cut on the way is not to be known.
  bool was_resized() const { return align_up(live_.size(), kSectorSize) != parent_.size(); }
  /// Bytes that the bitmap missed, as found so far, and the first ranges of them.
  std::uint64_t missed_bytes() const noexcept { return missed_bytes_; }
  const Extents& first_missed() const noexcept { return first_missed_; }

 private:
  std::vector<ExportStatus> status(const GuestRange& range);
  void add_clean_zeros(const GuestRange& range, Extents& extents);
  Extents with_doubts_settled(const Extents& extents);
  void compare_with_parent(const GuestRange& range, Kind live_kind, Extents& extents);

  NbdExport& live_;
  Chain& parent_;
  std::unique_ptr<Reader> live_reader_;
  std::unique_ptr<Reader> parent_reader_;
  std::vector<std::byte> live_bytes_;
  std::vector<std::byte> parent_bytes_;
  std::vector<GuestRange> doubts_;  // of the answer in the making: where a cluster may have been cut
  std::uint64_t missed_bytes_ = 0;
  Extents first_missed_;
};

}  // namespace qchain
