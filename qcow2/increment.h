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
/// - Past the parent's end everything counts as changed: inherited bytes read as zeros there.
/// - A bitmap can lie: a disk that shrank and grew again has clean bits over data that is gone. Where it
///   says clean, the export reads as zeros and the parent holds something else, the range is taken as
///   changed, and is counted.
class Increment : public BlockDevice {
 public:
  /// Both have to outlive this. The export was opened with a source of changes.
  Increment(NbdExport& live, Chain& parent);

  std::string name() const override { return live_.name(); }
  std::uint64_t size() const override { return live_.size(); }
  Extents extents(const GuestRange& range) override;
  std::unique_ptr<Reader> open_reader() override { return live_.open_reader(); }

  /// Bytes that the bitmap missed, as found so far, and the first ranges of them.
  std::uint64_t missed_bytes() const noexcept { return missed_bytes_; }
  const Extents& first_missed() const noexcept { return first_missed_; }

 private:
  void add_clean_zeros(const GuestRange& range, Extents& extents);
  void compare_with_parent(const GuestRange& range, Extents& extents);

  NbdExport& live_;
  Chain& parent_;
  std::unique_ptr<Reader> parent_reader_;
  std::vector<std::byte> buffer_;
  std::uint64_t missed_bytes_ = 0;
  Extents first_missed_;
};

}  // namespace qchain
