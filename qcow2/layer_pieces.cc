#include "qcow2/layer_pieces.h"

#include <algorithm>
#include <utility>

namespace qchain {

namespace {

// How far the planner looks ahead at most if there are many small extents, since those are kept in memory.
constexpr std::uint64_t kWindow = std::uint64_t{64} << 20;

// `blocks`, with all of `also` as Data.
ExtentSource with_range(ExtentSource blocks, const GuestRange& also) {
  if (also.empty()) return blocks;
  Extents wanted;
  append(wanted, {{GuestOffset(0), also.begin}, Kind::Inherit});
  append(wanted, {also, Kind::Data});
  return zip(std::move(blocks), stream(wanted),
             [](Kind kind, Kind in_also) { return in_also == Kind::Data ? in_also : kind; });
}

}  // namespace

LayerPieces::LayerPieces(ExtentSource stored, std::uint64_t block, Position position,
                         const GuestRange& also_read, const PieceLimits& limits)
    : stored_(std::move(stored)),
      block_(block),
      position_(position),
      planner_(with_range([this] { return next_block_run(); }, also_read), limits) {}

bool LayerPieces::next(Piece& piece) {
  piece.stored.clear();
  if (!planner_.next(piece)) return false;
  const GuestRange range{piece.runs.front().range.begin, piece.runs.back().range.end};
  while (!ahead_.empty() && ahead_.front().range.begin < range.end) {
    Extent& first = ahead_.front();
    append(piece.stored, {intersect(first.range, range), first.kind});
    if (first.range.end > range.end) {
      first.range.begin = range.end;
      break;
    }
    ahead_.pop_front();
  }
  return true;
}

std::optional<Extent> LayerPieces::next_block_run() {
  if (blocks_.empty()) fill_window();
  if (blocks_.empty()) return std::nullopt;
  const Extent run = blocks_.front();
  blocks_.pop_front();
  return run;
}

// Windows begin and end at multiples of kWindow, so that no block is divided.
void LayerPieces::fill_window() {
  Extents window;
  GuestOffset end;
  while (std::optional<Extent> extent = take_stored()) {
    if (window.empty()) {
      // An extent that reaches past the end of the window makes the window longer.
      const GuestOffset first(align_down(extent->range.begin.bytes(), kWindow) + kWindow);
      end = std::max(first, GuestOffset(align_down(extent->range.end.bytes(), kWindow)));
    }
    const GuestOffset cut = std::min(extent->range.end, end);
    if (cut < extent->range.end) pending_ = Extent{{cut, extent->range.end}, extent->kind};
    window.push_back({{extent->range.begin, cut}, extent->kind});
    if (cut == end) break;
  }
  ahead_.insert(ahead_.end(), window.begin(), window.end());
  ExtentSource blocks = normalise(stream(window), block_, position_);
  if (position_ == Position::Bottom) blocks = as_zeros(std::move(blocks));
  while (const std::optional<Extent> run = blocks()) blocks_.push_back(*run);
}

std::optional<Extent> LayerPieces::take_stored() {
  if (pending_) return std::exchange(pending_, std::nullopt);
  for (;;) {
    std::optional<Extent> extent = stored_();
    if (!extent || !extent->range.empty()) return extent;
  }
}

}  // namespace qchain
