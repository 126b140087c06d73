#include "extent/nbd_status.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "extent/error.h"

namespace qchain {

namespace {

const std::string kAllocation = "base:allocation";
const std::string kAllocationDepth = "qemu:allocation-depth";
const std::string kBitmapPrefix = "qemu:dirty-bitmap:";

constexpr std::uint32_t kAllocationZero = 1U << 1;
constexpr std::uint32_t kBitmapDirty = 1U << 0;
constexpr std::uint32_t kDepthActiveLayer = 1;

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::ranges::find(names, name) != names.end();
}

std::string choose_bitmap(const std::string& uri, const std::vector<std::string>& bitmaps,
                          const std::string& wanted) {
  const std::string on_offer =
      bitmaps.empty() ? "none is on offer" : fmt::format("on offer: {}", fmt::join(bitmaps, ", "));
  if (wanted.empty() && bitmaps.empty()) {
    throw Error(Outcome::Usage, fmt::format("{}: offers no dirty bitmap, so the changes since the parent "
                                            "are unknown; pull a full image instead",
                                            uri));
  }
  if (wanted.empty() && bitmaps.size() > 1) {
    throw Error(Outcome::Usage, fmt::format("{}: several dirty bitmaps ({}); name one", uri, on_offer),
                Remedy::NameBitmap);
  }
  if (wanted.empty()) return bitmaps.front();
  if (!contains(bitmaps, wanted)) {
    throw Error(Outcome::Usage, fmt::format("{}: no dirty bitmap {} ({})", uri, wanted, on_offer));
  }
  return wanted;
}

class StatusMerger {
 public:
  StatusMerger(const ContextChoice& choice, const std::vector<std::vector<ContextExtent>>& answers)
      : choice_(choice), answers_(answers), next_(answers.size(), 0) {
    for (const auto& answer : answers_) left_.push_back(answer.front().length);
  }

  std::vector<ExportStatus> merge(GuestOffset begin) {
    std::vector<ExportStatus> merged;
    while (std::ranges::all_of(left_, [](std::uint64_t left) { return left > 0; })) {
      const std::uint64_t step = *std::ranges::min_element(left_);
      ExportStatus status = current();
      status.range = {begin, begin + step};
      merged.push_back(status);
      begin = begin + step;
      for (std::size_t i = 0; i < left_.size(); ++i) advance(i, step);
    }
    return merged;
  }

 private:
  ExportStatus current() const {
    ExportStatus status;
    status.dirty = choice_.source == Changes::Source::None;
    for (std::size_t i = 0; i < answers_.size(); ++i) {
      const std::uint32_t flags = answers_[i][next_[i]].flags;
      if (choice_.contexts[i] == kAllocation) {
        status.zero = (flags & kAllocationZero) != 0;
      } else if (choice_.source == Changes::Source::DirtyBitmap) {
        status.dirty = (flags & kBitmapDirty) != 0;
      } else {
        status.dirty = flags == kDepthActiveLayer;
      }
    }
    return status;
  }

  void advance(std::size_t i, std::uint64_t step) {
    left_[i] -= step;
    if (left_[i] == 0 && ++next_[i] < answers_[i].size()) left_[i] = answers_[i][next_[i]].length;
  }

  const ContextChoice& choice_;
  const std::vector<std::vector<ContextExtent>>& answers_;
  std::vector<std::size_t> next_;
  std::vector<std::uint64_t> left_;  // of each context's current extent
};

}  // namespace

ContextChoice::ContextChoice(const std::string& uri, const Changes& changes,
                             const std::vector<std::string>& offered)
    : source(changes.source) {
  for (const std::string& context : offered) {
    if (context.starts_with(kBitmapPrefix)) bitmaps.push_back(context.substr(kBitmapPrefix.size()));
  }
  if (contains(offered, kAllocation)) contexts.push_back(kAllocation);
  if (source == Changes::Source::DirtyBitmap) {
    bitmap = choose_bitmap(uri, bitmaps, changes.bitmap);
    contexts.push_back(kBitmapPrefix + bitmap);
  }
  if (source == Changes::Source::AllocationDepth) {
    if (!contains(offered, kAllocationDepth)) {
      throw Error(Outcome::Usage,
                  fmt::format("{}: offers no {}, so the content of the active layer is unknown", uri,
                              kAllocationDepth));
    }
    contexts.push_back(kAllocationDepth);
  }
}

bool ContextChoice::has_allocation() const { return contains(contexts, kAllocation); }

std::vector<ExportStatus> merged_status(const ContextChoice& choice,
                                        const std::vector<std::vector<ContextExtent>>& answers,
                                        GuestOffset begin) {
  return StatusMerger(choice, answers).merge(begin);
}

std::vector<ExportStatus> agreed_status(const std::vector<ExportStatus>& first,
                                        const std::vector<ExportStatus>& second) {
  std::vector<ExportStatus> both;
  auto a = first.begin();
  auto b = second.begin();
  while (a != first.end() && b != second.end()) {
    const ExportStatus piece{intersect(a->range, b->range), a->zero && b->zero, a->dirty || b->dirty};
    if (!both.empty() && both.back().zero == piece.zero && both.back().dirty == piece.dirty) {
      both.back().range.end = piece.range.end;
    } else {
      both.push_back(piece);
    }
    const GuestOffset end = piece.range.end;
    if (a->range.end == end) ++a;
    if (b->range.end == end) ++b;
  }
  return both;
}

std::vector<ExportStatus> clipped_status(const std::vector<ExportStatus>& list, const GuestRange& range) {
  std::vector<ExportStatus> inside;
  for (const ExportStatus& status : list) {
    const GuestRange common = intersect(status.range, range);
    if (!common.empty()) inside.push_back({common, status.zero, status.dirty});
  }
  return inside;
}

}  // namespace qchain
