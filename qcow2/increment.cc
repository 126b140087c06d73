#include "qcow2/increment.h"

#include <fmt/format.h>

#include <algorithm>

#include "extent/cancellation.h"
#include "extent/zero.h"

namespace qchain {

namespace {

constexpr std::size_t kMaxNamed = 16;
constexpr std::uint64_t kBlock = CleanSample::kBlock;
// Fewer bytes are not enough to conclude that it is another disk.
constexpr std::uint64_t kMinForAnotherDisk = 8 * kBlock;

bool nearly_all(std::uint64_t differing, std::uint64_t all) { return differing > all - all / 10; }

// A fixed pseudo-random number in [0, 1) for a block: SplitMix64.
double chance_of(std::uint64_t block, std::uint64_t seed) {
  std::uint64_t x = block + seed + 0x9E3779B97F4A7C15;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
  x = (x ^ x >> 27) * 0x94D049BB133111EB;
  x ^= x >> 31;
  constexpr double kScale = 1.0 / 9007199254740992.0;  // 2^-53
  return static_cast<double>(x >> 11) * kScale;
}

}  // namespace

Increment::Increment(NbdExport& live, Chain& parent, const IncrementOptions& options)
    : live_(live), parent_(parent), options_(options), sample_(live.size(), options.seed) {}

Extents Increment::extents(const GuestRange& range) {
  const GuestOffset parent_end(parent_.size());
  Extents extents;
  for (const ExportStatus& status : live_.status(range)) {
    const bool zero = status.zero && options_.trust_zeros;
    const GuestRange inside = intersect(status.range, {GuestOffset(0), parent_end});
    const GuestRange past{std::max(status.range.begin, parent_end), status.range.end};
    if (candidate_) {
      sample_.add(*candidate_, after_dirty_, status.dirty);
      after_dirty_ = false;
      candidate_.reset();
    }
    if (status.dirty) {
      append(extents, {inside, zero ? Kind::Zero : Kind::Data});
      after_dirty_ = true;
    } else {
      add_clean(inside, zero, extents);
    }
    append(extents, {past, zero ? Kind::Inherit : Kind::Data});
  }
  if (candidate_ && range.end == GuestOffset(size()) && !extents.empty() &&
      extents.back().range.end == range.end) {
    sample_.add(*candidate_, after_dirty_, false);
    candidate_.reset();
  }
  return extents;
}

void Increment::add_clean(const GuestRange& range, bool zero, Extents& extents) {
  for (GuestRange rest = range; !rest.empty();) {
    for (const Extent& extent : parent_.extents(rest)) {
      rest.begin = extent.range.end;
      const bool parent_has_data = extent.kind == Kind::Data;
      if (zero && !parent_has_data) {
        add({extent.range, false}, Kind::Inherit, extents);
      } else if (zero || !parent_has_data || options_.trust == Trust::Nothing) {
        add({extent.range, true}, zero ? Kind::Zero : Kind::Data, extents);
      } else {
        add_candidate(extent.range, extents);
      }
    }
  }
}

void Increment::add(const CleanRange& clean, Kind kind, Extents& extents) {
  if (clean.range.empty()) return;
  append(extents, {clean.range, kind});
  if (!clean_.empty() && clean_.back().compare == clean.compare &&
      clean_.back().range.end == clean.range.begin) {
    clean_.back().range.end = clean.range.end;
  } else {
    clean_.push_back(clean);
  }
}

// Clean, and data in the export and in the parent.
void Increment::add_candidate(const GuestRange& range, Extents& extents) {
  if (options_.fraction <= 0) {
    add({range, false}, Kind::Inherit, extents);
    if (!options_.sample) return;
    if (candidate_) {
      sample_.add(*candidate_, after_dirty_, false);
      after_dirty_ = false;
    }
    candidate_ = range;
    return;
  }
  for (GuestRange rest = range; !rest.empty();) {
    const std::uint64_t block = rest.begin.bytes() / kBlock;
    const GuestRange part = intersect(rest, guest_range(block * kBlock, kBlock));
    const bool compare = chance_of(block, options_.seed) < options_.fraction;
    add({part, compare}, compare ? Kind::Data : Kind::Inherit, extents);
    rest.begin = part.end;
  }
}

std::vector<CleanRange> Increment::take_clean(const GuestRange& piece) {
  std::vector<CleanRange> taken;
  bool any_suspect = false;
  while (!clean_.empty() && clean_.front().range.begin < piece.end) {
    GuestRange& first = clean_.front().range;
    const GuestRange common = intersect(first, piece);
    if (!common.empty()) taken.push_back({common, clean_.front().compare});
    any_suspect = any_suspect || (!common.empty() && clean_.front().compare);
    if (first.end > piece.end) {
      first.begin = std::max(first.begin, piece.end);
      break;
    }
    clean_.pop_front();
  }
  if (!any_suspect) taken.clear();
  return taken;
}

void Increment::note_compared(std::uint64_t equal_data_bytes, const Extents& missed) {
  const std::lock_guard lock(mutex_);
  equal_data_bytes_ += equal_data_bytes;
  for (const Extent& extent : missed) {
    missed_bytes_ += extent.range.length();
    if (extent.kind == Kind::Data) missed_data_bytes_ += extent.range.length();
    if (first_missed_.size() < kMaxNamed) append(first_missed_, extent);
  }
  if (missed.empty() || options_.trust == Trust::Nothing) return;
  throw BitmapContradiction(
      fmt::format("{}: the dirty bitmap reports {} as clean, but the disk differs from the parent {} there",
                  live_.name(), to_string(missed.front().range), parent_.name()));
}

void Increment::require_same_disk() const {
  const std::uint64_t compared = missed_data_bytes_ + equal_data_bytes_;
  if (compared < kMinForAnotherDisk || !nearly_all(missed_data_bytes_, compared)) return;
  throw Error(
      Outcome::Mismatch,
      fmt::format("{}: of {} bytes of data that the dirty bitmap reports as clean, {} differ from the parent "
                  "{}: this "
                  "is another disk, or the bitmap does not start at the parent's point in time; nothing was "
                  "published; choose the right parent, or pull a full image",
                  live_.name(), compared, missed_data_bytes_, parent_.name()));
}

void Increment::check_sample(std::uint64_t read_bytes) {
  constexpr std::uint64_t kSharePercent = 3;  // of what the pull reads anyway
  constexpr std::size_t kBatch = 16;
  const std::vector<std::uint64_t> blocks = sample_.blocks(read_bytes / kBlock * kSharePercent / 100);
  const std::uint64_t end = std::min(live_.size(), parent_.size());
  const std::unique_ptr<Reader> live_reader = live_.control_reader();
  const std::unique_ptr<Reader> parent_reader = parent_.open_reader();
  std::vector<std::byte> live_bytes(kBatch * kBlock);
  std::vector<std::byte> parent_bytes(live_bytes.size());
  std::uint64_t equal_data = 0;
  Extents missed;
  for (std::size_t at = 0; at < blocks.size(); at += kBatch) {
    throw_if_cancelled();
    std::vector<ReadRequest> live;
    std::vector<ReadRequest> parent;
    for (std::size_t i = at; i < std::min(at + kBatch, blocks.size()); ++i) {
      const std::uint64_t begin = blocks[i] * kBlock;
      const std::uint64_t length = std::min(kBlock, end - begin);
      live.push_back({GuestOffset(begin), std::span(live_bytes).subspan((i - at) * kBlock, length)});
      parent.push_back({GuestOffset(begin), std::span(parent_bytes).subspan((i - at) * kBlock, length)});
    }
    live_reader->read(live);
    parent_reader->read(parent);
    for (std::size_t i = 0; i < live.size(); ++i) {
      if (std::ranges::equal(live[i].into, parent[i].into)) {
        if (!is_zero(live[i].into)) equal_data += live[i].into.size();
      } else {
        compare_clean(live[i], parent[i], missed);
      }
    }
    sampled_blocks_ += live.size();
  }
  try {
    note_compared(equal_data, missed);
  } catch (const BitmapContradiction&) {
    require_same_disk();
    throw;
  }
}

// A block that differs may be dirty in part; its dirty ranges are stored in the layer.
void Increment::compare_clean(const ReadRequest& live, const ReadRequest& parent, Extents& missed) {
  for (GuestRange rest = live.range(); !rest.empty();) {
    for (const ExportStatus& status : live_.status(rest)) {
      rest.begin = status.range.end;
      const std::size_t at = status.range.begin - live.begin;
      const auto live_bytes = live.into.subspan(at, status.range.length());
      if (status.dirty || std::ranges::equal(live_bytes, parent.into.subspan(at, live_bytes.size())))
        continue;
      append(missed, {status.range, is_zero(live_bytes) ? Kind::Zero : Kind::Data});
    }
  }
}

}  // namespace qchain
