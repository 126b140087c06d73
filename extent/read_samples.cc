#include "extent/read_samples.h"

#include <algorithm>
#include <cstring>

#include "extent/zero.h"

namespace qchain {

ReadSamples::Sample sample_of(const ReadRequest& request) {
  constexpr std::size_t kPlaces = 4;
  ReadSamples::Sample sample;
  sample.length = std::min<std::size_t>(request.into.size(), kSectorSize);
  std::size_t at = 0;
  for (std::size_t place = 0; place < kPlaces; ++place) {
    const std::uint64_t candidate = align_down(request.into.size() / kPlaces * place, kSectorSize);
    if (request.into.size() - candidate < sample.length) break;
    if (is_zero(request.into.subspan(candidate, sample.length))) continue;
    at = candidate;
    break;
  }
  sample.begin = request.begin + at;
  std::memcpy(sample.bytes.data(), request.into.data() + at, sample.length);
  return sample;
}

void ReadSamples::add(const ReadRequest& request) {
  if (request.into.empty()) return;
  last_ = sample_of(request);
  const std::uint64_t number = seen_++;
  if (number % stride_ != 0) return;
  if (kept_.size() == kMax - 1) {  // one is for the last
    std::size_t index = 0;
    std::erase_if(kept_, [&](const Sample&) { return index++ % 2 != 0; });
    stride_ *= 2;
    if (number % stride_ != 0) return;
  }
  kept_.push_back(last_);
}

std::vector<ReadSamples::Sample> ReadSamples::all() const {
  std::vector<Sample> samples = kept_;
  if (seen_ > 0 && samples.back().begin != last_.begin) samples.push_back(last_);
  return samples;
}

}  // namespace qchain
