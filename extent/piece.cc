#include "extent/piece.h"

#include <algorithm>
#include <cassert>
#include <utility>

namespace qchain {

namespace {
constexpr std::size_t kMaxRuns = 4096;
}

PieceLimits limits_for(unsigned workers, unsigned copies, std::uint64_t boundary) {
  PieceLimits limits;
  limits.boundary = boundary;
  const std::uint64_t share = std::min(limits.data, kMaxPieceMemory / workers / copies);
  limits.data = std::max(align_down(share, boundary), 2 * boundary);
  return limits;
}

WorkerPlan plan_workers(unsigned wanted, std::uint64_t buffer, std::uint64_t fixed, std::uint64_t memory) {
  WorkerPlan plan;
  plan.workers = static_cast<unsigned>(std::clamp<std::uint64_t>(memory / (buffer + fixed), 1, wanted));
  if (plan.workers * (2 * buffer + fixed) <= memory) plan.buffers = 2;
  return plan;
}

PiecePlanner::PiecePlanner(ExtentSource source, PieceLimits limits)
    : source_(std::move(source)), limits_(limits) {
  assert(limits_.data >= limits_.boundary && limits_.empty >= limits_.boundary);
}

bool PiecePlanner::refill() {
  while (!rest_ || rest_->range.empty()) {
    rest_ = source_();
    if (!rest_) return false;
  }
  return true;
}

// How far the piece may take the extent in rest_. The invariant: whenever a piece enters a new block of
// limits_.boundary bytes, it has room for one block of data and one without. So cuts are always at block
// boundaries, and a block is never divided.
GuestOffset PiecePlanner::cut_for(const Piece& piece, std::uint64_t empty_bytes) const {
  const GuestRange& range = rest_->range;
  const std::uint64_t data_room = limits_.data - piece.data_bytes;
  const std::uint64_t empty_room = limits_.empty - empty_bytes;
  const auto next_block = [&](GuestOffset offset) {
    return GuestOffset(align_up(offset.bytes(), limits_.boundary));
  };
  if (piece.runs.size() >= kMaxRuns || data_room < limits_.boundary || empty_room < limits_.boundary) {
    return std::min(range.end, next_block(range.begin));
  }
  const std::uint64_t room = rest_->kind == Kind::Data ? data_room : empty_room;
  if (next_block(range.end) <= range.begin + room) return range.end;
  return GuestOffset(align_down((range.begin + room).bytes(), limits_.boundary));
}

bool PiecePlanner::next(Piece& piece) {
  piece.runs.clear();
  piece.data_bytes = 0;
  std::uint64_t empty_bytes = 0;
  while (refill()) {
    const GuestOffset cut = cut_for(piece, empty_bytes);
    if (cut <= rest_->range.begin) break;
    const Extent taken{{rest_->range.begin, cut}, rest_->kind};
    rest_->range.begin = cut;
    append(piece.runs, taken);
    (taken.kind == Kind::Data ? piece.data_bytes : empty_bytes) += taken.range.length();
    if (!rest_->range.empty()) break;
  }
  return !piece.runs.empty();
}

}  // namespace qchain
