#include "qcow2/clean_comparison.h"

#include <algorithm>
#include <utility>

#include "extent/cancellation.h"
#include "extent/zero.h"

namespace qchain {

namespace {

constexpr std::uint64_t kBlock = std::uint64_t{64} << 10;
constexpr std::uint64_t kAtATime = std::uint64_t{256} << 10;

}  // namespace

CleanComparison::CleanComparison(Increment& increment, std::uint64_t unit, std::uint64_t block)
    : increment_(increment),
      unit_(unit),
      block_(block),
      parent_(increment.parent().open_reader_at(0)),
      bytes_(kAtATime) {}

void CleanComparison::plan(const Piece& piece) {
  clean_ = increment_.take_clean({piece.runs.front().range.begin, piece.runs.back().range.end});
}

void CleanComparison::fetched(Batch& batch) {
  if (clean_.empty()) return;
  equal_.clear();
  missed_.clear();
  equal_data_ = 0;
  for (const auto& [range, compared] : clean_) {
    if (!compared) {
      add_equal(range);
      continue;
    }
    auto data = batch.data.begin();
    for (const Extent& run : batch.piece.runs) {
      const GuestRange common = intersect(range, run.range);
      if (run.kind == Kind::Data) {
        if (!common.empty()) compare(common, data->into.subspan(common.begin - data->begin, common.length()));
        ++data;
      } else if (run.kind == Kind::Zero && !common.empty()) {
        compare(common, {});
      }
    }
  }
  increment_.note_compared(equal_data_, missed_);
  leave_out_equal(batch.piece);
}

// What was not read is inherited, or stored as zeros, block by block.
void CleanComparison::leave_out_equal(Piece& piece) const {
  Extents runs;
  for (const Extent& run : piece.runs) {
    if (run.kind == Kind::Zero) {
      leave_out(run, block_, runs);
    } else {
      append(runs, run);
    }
  }
  Extents kept;
  for (const Extent& extent : piece.stored) {
    if (extent.kind == Kind::Inherit) {
      append(kept, extent);
      continue;
    }
    for (const Extent& run : piece.runs) {
      const GuestRange common = intersect(extent.range, run.range);
      if (common.empty()) continue;
      leave_out({common, extent.kind}, run.kind == Kind::Zero ? block_ : unit_, kept);
    }
  }
  piece.runs = std::move(runs);
  piece.stored = std::move(kept);
}

// `live`: empty for zeros.
void CleanComparison::compare(const GuestRange& part, std::span<const std::byte> live) {
  for (GuestRange rest = part; !rest.empty();) {
    throw_if_cancelled();
    const GuestRange some =
        intersect(rest, {rest.begin, GuestOffset(align_down(rest.begin.bytes(), kBlock)) + kAtATime});
    const std::span<std::byte> parent = bytes_.span().first(some.length());
    const ReadRequest request{some.begin, parent};
    parent_->read(std::span(&request, 1));
    for (GuestRange left = some; !left.empty();) {
      const GuestRange block =
          intersect(left, {left.begin, GuestOffset(align_down(left.begin.bytes(), kBlock)) + kBlock});
      const auto of_block = [&](std::span<const std::byte> bytes, GuestOffset begin) {
        return bytes.empty() ? bytes : bytes.subspan(block.begin - begin, block.length());
      };
      compare_block(block, of_block(live, part.begin), of_block(parent, some.begin));
      left.begin = block.end;
    }
    rest.begin = some.end;
  }
}

void CleanComparison::compare_block(const GuestRange& block, std::span<const std::byte> live,
                                    std::span<const std::byte> parent) {
  const bool live_is_zero = is_zero(live);
  const bool equal = live.empty() ? is_zero(parent) : std::ranges::equal(live, parent);
  if (!equal) return append(missed_, {block, live_is_zero ? Kind::Zero : Kind::Data});
  if (!live_is_zero) equal_data_ += block.length();
  add_equal(block);
}

void CleanComparison::add_equal(const GuestRange& range) {
  if (!equal_.empty() && equal_.back().end == range.begin) {
    equal_.back().end = range.end;
  } else {
    equal_.push_back(range);
  }
}

bool CleanComparison::is_equal(const GuestRange& range) const {
  const auto after = std::ranges::upper_bound(equal_, range.begin, {}, &GuestRange::begin);
  return after != equal_.begin() && std::prev(after)->end >= range.end;
}

// Appends `extent` to `kept`, with Inherit for each whole step of it that equals the parent.
void CleanComparison::leave_out(const Extent& extent, std::uint64_t step, Extents& kept) const {
  for (GuestRange rest = extent.range; !rest.empty();) {
    const GuestRange part =
        intersect(rest, {rest.begin, GuestOffset(align_down(rest.begin.bytes(), step)) + step});
    append(kept, {part, is_equal(part) ? Kind::Inherit : extent.kind});
    rest.begin = part.end;
  }
}

}  // namespace qchain
