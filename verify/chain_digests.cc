#include "verify/chain_digests.h"

#include <algorithm>

namespace qchain {

void ChainDigests::Source::advance_to(std::uint64_t block) {
  while (!ended && record.end() <= block) ended = !reader.next(record);
}

ChainDigests::ChainDigests(const std::vector<std::string>& manifests) {
  for (const std::string& path : manifests) readers_.push_back(std::make_unique<Source>(path));
}

ChainDigests::Run ChainDigests::next(std::uint64_t first, std::uint64_t at_most) {
  std::uint64_t count = at_most;
  for (const auto& source : readers_) {
    const std::uint64_t blocks = source->header().blocks();
    if (first >= blocks) break;  // past this layer's end: zeros, whatever is beneath
    count = std::min(count, blocks - first);
    source->advance_to(first);
    if (source->ended) continue;
    const ManifestRecord& record = source->record;
    if (record.first > first) {
      count = std::min(count, record.first - first);
      continue;
    }
    count = std::min(count, record.end() - first);
    return {count, record.held == Held::Zeros ? nullptr : &record.whole[first - record.first]};
  }
  return {count, nullptr};
}

void ChainDigests::add_to(DiskDigest& disk, std::uint64_t first, std::uint64_t count,
                          std::uint64_t end) {
  while (count > 0) {
    const Run run = next(first, count);
    const std::uint64_t begin = first * kDigestBlock;
    const std::uint64_t length = std::min(end - begin, run.count * kDigestBlock);
    if (run.digests == nullptr) {
      disk.add_zeros(length);
    } else {
      for (std::uint64_t i = 0; i < run.count; ++i) {
        disk.add_block(run.digests[i], std::min(kDigestBlock, length - i * kDigestBlock));
      }
    }
    first += run.count;
    count -= run.count;
  }
}

void ChainDigests::finish() {
  for (const auto& source : readers_) {
    while (!source->ended) source->ended = !source->reader.next(source->record);
  }
}

}  // namespace qchain
