#include "qcow2/increment.h"

#include <algorithm>

#include "extent/zero.h"

namespace qchain {

namespace {
constexpr std::size_t kBlock = std::size_t{64} << 10;
constexpr std::size_t kMaxNamed = 16;
}  // namespace

Increment::Increment(NbdExport& live, Chain& parent)
    : live_(live), parent_(parent), parent_reader_(parent.open_reader()), buffer_(kBlock) {}

Extents Increment::extents(const GuestRange& range) {
  const GuestOffset parent_end(parent_.size());
  Extents extents;
  for (const ExportStatus& status : live_.status(range)) {
    const GuestRange inside = intersect(status.range, {GuestOffset(0), parent_end});
    const GuestRange past{std::max(status.range.begin, parent_end), status.range.end};
    if (status.dirty) {
      append(extents, {inside, status.zero ? Kind::Zero : Kind::Data});
    } else if (status.zero) {
      add_clean_zeros(inside, extents);
    } else {
      append(extents, {inside, Kind::Inherit});
    }
    append(extents, {past, status.zero ? Kind::Inherit : Kind::Data});
  }
  return extents;
}

void Increment::add_clean_zeros(const GuestRange& range, Extents& extents) {
  for (GuestRange rest = range; !rest.empty();) {
    for (const Extent& extent : parent_.extents(rest)) {
      rest.begin = extent.range.end;
      if (extent.kind == Kind::Data) {
        compare_with_parent(extent.range, extents);
      } else {
        append(extents, {extent.range, Kind::Inherit});
      }
    }
  }
}

void Increment::compare_with_parent(const GuestRange& range, Extents& extents) {
  for (GuestRange rest = range; !rest.empty();) {
    const std::uint64_t length = std::min<std::uint64_t>(rest.length(), buffer_.size());
    const ReadRequest request{rest.begin, std::span(buffer_).first(length)};
    parent_reader_->read(std::span(&request, 1));
    const bool missed = !is_zero(request.into);
    append(extents, {request.range(), missed ? Kind::Zero : Kind::Inherit});
    if (missed) {
      missed_bytes_ += length;
      if (first_missed_.size() < kMaxNamed) append(first_missed_, {request.range(), Kind::Zero});
    }
    rest.begin = request.range().end;
  }
}

}  // namespace qchain
