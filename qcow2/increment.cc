#include "qcow2/increment.h"

#include <algorithm>
#include <iterator>

namespace qchain {

namespace {

constexpr std::size_t kBlock = std::size_t{64} << 10;
constexpr std::size_t kMaxNamed = 16;
// The largest cluster that the live image can have: what a cut inside a cluster can reach.
constexpr std::uint64_t kMaxCluster = std::uint64_t{1} << kMaxClusterBits;

}  // namespace

Increment::Increment(NbdExport& live, Chain& parent)
    : live_(live),
      parent_(parent),
      live_reader_(live.control_reader()),
      parent_reader_(parent.open_reader()),
      live_bytes_(kBlock),
      parent_bytes_(kBlock) {}

// The status of a beginning of `range` that ends at a border of the largest cluster, or where the range ends:
// a cluster that was cut is seen together with the zeros behind it.
std::vector<ExportStatus> Increment::status(const GuestRange& range) {
  std::vector<ExportStatus> all;
  GuestRange rest = range;
  const auto border = [&] { return GuestOffset(align_down(rest.begin.bytes(), kMaxCluster)); };
  while (!rest.empty() && (all.empty() || border() <= range.begin)) {
    std::ranges::copy(live_.status(rest), std::back_inserter(all));
    rest.begin = all.back().range.end;
  }
  if (rest.empty()) return all;
  const GuestOffset end = border();
  std::erase_if(all, [&](const ExportStatus& status) { return status.range.begin >= end; });
  all.back().range.end = std::min(all.back().range.end, end);
  return all;
}

Extents Increment::extents(const GuestRange& range) {
  const GuestOffset parent_end(parent_.size());
  const GuestOffset disk_end(size());
  doubts_ = {{GuestOffset(was_resized() || size() == 0 ? 0 : align_down(size() - 1, kMaxCluster)), disk_end}};
  Extents extents;
  for (const ExportStatus& status : status(range)) {
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
  return with_doubts_settled(extents);
}

void Increment::add_clean_zeros(const GuestRange& range, Extents& extents) {
  const std::uint64_t missed_before = missed_bytes_;
  for (GuestRange rest = range; !rest.empty();) {
    for (const Extent& extent : parent_.extents(rest)) {
      rest.begin = extent.range.end;
      if (extent.kind == Kind::Data) {
        compare_with_parent(extent.range, Kind::Zero, extents);
      } else {
        append(extents, {extent.range, Kind::Inherit});
      }
    }
  }
  const GuestOffset cluster(align_down(range.begin.bytes(), kMaxCluster));
  if (missed_bytes_ > missed_before && cluster < range.begin) doubts_.push_back({cluster, range.begin});
}

// What is inherited where there is doubt is compared after all.
Extents Increment::with_doubts_settled(const Extents& extents) {
  Extents settled;
  for (const Extent& extent : extents) {
    if (extent.kind != Kind::Inherit) {
      append(settled, extent);
      continue;
    }
    for (GuestRange rest = extent.range; !rest.empty();) {
      // The next doubt in the rest, if there is one.
      GuestRange doubt{rest.end, rest.end};
      for (const GuestRange& candidate : doubts_) {
        const GuestRange common = intersect(candidate, rest);
        if (!common.empty() && common.begin < doubt.begin) doubt = common;
      }
      append(settled, {{rest.begin, doubt.begin}, Kind::Inherit});
      compare_with_parent(intersect(doubt, {GuestOffset(0), GuestOffset(parent_.size())}), Kind::Data,
                          settled);
      const GuestOffset compared = settled.empty() ? rest.begin : settled.back().range.end;
      append(settled, {{std::max(compared, doubt.begin), doubt.end}, Kind::Inherit});
      rest.begin = doubt.end;
    }
  }
  return settled;
}

// Holds what is said to be clean against the parent, block by block. `live_kind`: Zero, or Data that has to
// be read.
void Increment::compare_with_parent(const GuestRange& range, Kind live_kind, Extents& extents) {
  for (GuestRange rest = range; !rest.empty();) {
    const std::uint64_t length = std::min<std::uint64_t>(rest.length(), kBlock);
    const ReadRequest parent{rest.begin, std::span(parent_bytes_).first(length)};
    const ReadRequest live{rest.begin, std::span(live_bytes_).first(length)};
    parent_reader_->read(std::span(&parent, 1));
    if (live_kind == Kind::Zero) {
      std::ranges::fill(live.into, std::byte{0});
    } else {
      live_reader_->read(std::span(&live, 1));
    }
    const bool missed = !std::ranges::equal(parent.into, live.into);
    append(extents, {parent.range(), missed ? live_kind : Kind::Inherit});
    if (missed) {
      missed_bytes_ += length;
      if (first_missed_.size() < kMaxNamed) append(first_missed_, {parent.range(), live_kind});
    }
    rest.begin = parent.range().end;
  }
}

}  // namespace qchain
