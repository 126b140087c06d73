#include "qcow2/clean_sample.h"

#include <algorithm>
#include <cmath>

namespace qchain {

namespace {

constexpr std::uint64_t kEnd = std::uint64_t{1}
                               << 20;  // bytes at each end of the disk that are always compared
constexpr std::size_t kNeighbours = 64;

double uniform(std::mt19937_64& random) {
  constexpr double kScale = 1.0 / 18446744073709551616.0;  // 2^-64
  return (static_cast<double>(random()) + 0.5) * kScale;
}

}  // namespace

Reservoir::Reservoir(std::size_t capacity, std::uint64_t seed) : capacity_(capacity), random_(seed) {}

// Skips a random number of items, and selects the next one after them.
void Reservoir::jump() {
  constexpr double kFar = 1e18;
  weight_ *= std::exp(std::log(uniform(random_)) / static_cast<double>(capacity_));
  const double skipped = std::floor(std::log(uniform(random_)) / std::log1p(-weight_));
  next_ += static_cast<std::uint64_t>(std::min(skipped, kFar)) + 1;
}

void Reservoir::add(std::uint64_t first, std::uint64_t count) {
  const std::uint64_t begin = seen_;
  seen_ += count;
  for (std::uint64_t at = begin; at < seen_ && items_.size() < capacity_; ++at) {
    items_.push_back(first + (at - begin));
    if (items_.size() == capacity_) {
      next_ = at;
      jump();
    }
  }
  if (items_.size() < capacity_) return;
  for (; next_ < seen_; jump()) items_[random_() % capacity_] = first + (next_ - begin);
}

CleanSample::CleanSample(std::uint64_t disk, std::uint64_t seed)
    : disk_(disk), everywhere_(kMaxBlocks, seed), neighbours_(kNeighbours, seed + 1) {}

void CleanSample::add(const GuestRange& clean, bool after_dirty, bool before_dirty) {
  if (clean.empty()) return;
  const std::uint64_t first = clean.begin.bytes() / kBlock;
  const std::uint64_t last = (clean.end.bytes() - 1) / kBlock;
  everywhere_.add(first, last - first + 1);
  if (after_dirty) neighbours_.add(first, 1);
  if (before_dirty && last != first) neighbours_.add(last, 1);
  const auto add_end = [&](const GuestRange& end) {
    const GuestRange common = intersect(clean, end);
    for (std::uint64_t at = common.begin.bytes() / kBlock;
         !common.empty() && at * kBlock < common.end.bytes(); ++at) {
      ends_.push_back(at);
    }
  };
  add_end(guest_range(0, std::min(disk_, kEnd)));
  add_end({GuestOffset(disk_ - std::min(disk_, kEnd)), GuestOffset(disk_)});
}

std::vector<std::uint64_t> CleanSample::blocks(std::uint64_t share) const {
  const std::vector<std::uint64_t>& spread = everywhere_.items();
  const std::uint64_t wanted = std::clamp(share, kMinBlocks, kMaxBlocks);
  std::vector<std::uint64_t> all = ends_;
  const std::size_t count = std::min<std::size_t>(wanted, spread.size());
  // Every k-th item: spread over the disk, whether the items are in order or not.
  for (std::size_t i = 0; i < count; ++i) all.push_back(spread[i * spread.size() / count]);
  all.insert(all.end(), neighbours_.items().begin(), neighbours_.items().end());
  std::ranges::sort(all);
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

}  // namespace qchain
