#include "verify/chain_digests.h"

#include <algorithm>
#include <utility>

#include "extent/error.h"
#include "extent/interrupt.h"

namespace qchain {

namespace {

// Between two looks for an interrupt: 64 GiB of zeros.
constexpr std::uint64_t kAtATime = std::uint64_t{1} << 20;

std::uint64_t first_block(const GuestRange& range) { return range.begin.bytes() / kDigestBlock; }
std::uint64_t end_block(const GuestRange& range) { return divide_up(range.end.bytes(), kDigestBlock); }

StoredBlock block_of(const ChainDigests::Run& run, std::uint64_t index, std::uint64_t offset,
                     const GuestRange& range) {
  StoredBlock block;
  block.range = intersect(range, guest_range(index * kDigestBlock, kDigestBlock));
  block.known = run.known;
  block.held = run.held;
  block.layer = run.layer;
  if (run.whole != nullptr) block.whole = run.whole[offset];
  if (run.part != nullptr) block.part = run.part[offset];
  return block;
}

}  // namespace

void ChainDigests::Source::advance_to(std::uint64_t block) {
  while (!ended && record.end() <= block) ended = !reader.next(record);
}

ChainDigests::ChainDigests(const std::vector<std::string>& manifests, std::size_t first_layer, bool complete)
    : first_layer_(first_layer), complete_(complete) {
  for (const std::string& path : manifests) {
    auto source = std::make_unique<Source>(path);
    if (!readers_.empty() && source->header().algorithm != top().algorithm) {
      complete_ = false;
      break;
    }
    readers_.push_back(std::move(source));
  }
}

ChainDigests::Run ChainDigests::next(std::uint64_t first, std::uint64_t at_most) {
  Run run;
  run.count = at_most;
  for (std::size_t i = 0; i < readers_.size(); ++i) {
    Source& source = *readers_[i];
    run.layer = first_layer_ + i;
    const std::uint64_t blocks = source.header().blocks();
    if (first >= blocks) return run;  // past this layer's end: zeros, whatever is beneath
    run.count = std::min(run.count, blocks - first);
    source.advance_to(first);
    if (source.ended) continue;
    const ManifestRecord& record = source.record;
    if (record.first > first) {
      run.count = std::min(run.count, record.first - first);
      continue;
    }
    run.count = std::min(run.count, record.end() - first);
    run.held = record.held;
    if (record.held != Held::Zeros) run.whole = &record.whole[first - record.first];
    if (record.held == Held::Part) run.part = &record.part[first - record.first];
    return run;
  }
  run.known = complete_;
  return run;
}

void ChainDigests::add_to(DiskDigest& disk, std::uint64_t first, std::uint64_t count, std::uint64_t end) {
  while (count > 0) {
    throw_if_interrupted();
    const Run run = next(first, std::min(count, kAtATime));
    const std::uint64_t length = std::min(end - first * kDigestBlock, run.count * kDigestBlock);
    if (run.whole == nullptr) {
      disk.add_zeros(length);
    } else {
      for (std::uint64_t i = 0; i < run.count; ++i) {
        disk.add_block(run.whole[i], std::min(kDigestBlock, length - i * kDigestBlock));
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

StoredPiece stored_piece(ChainDigests& digests, const Piece& piece) {
  StoredPiece stored;
  for (const Extent& extent : piece.runs) {
    if (extent.kind == Kind::Inherit) continue;
    const std::uint64_t end = end_block(extent.range);
    for (std::uint64_t at = first_block(extent.range); at < end;) {
      const ChainDigests::Run run = digests.next(at, end - at);
      const GuestRange blocks = guest_range(at * kDigestBlock, run.count * kDigestBlock);
      if (!run.known) stored.unknown_bytes += intersect(extent.range, blocks).length();
      if (extent.kind == Kind::Zero && run.held == Held::Zeros) stored.zero_blocks += run.count;
      const GuestRange disk = intersect(extent.range, guest_range(0, digests.top().length));
      const bool listed = extent.kind == Kind::Data || run.whole != nullptr;
      for (std::uint64_t i = 0; listed && i < run.count; ++i) {
        (extent.kind == Kind::Data ? stored.data : stored.not_zero).push_back(block_of(run, at + i, i, disk));
      }
      at += run.count;
    }
  }
  return stored;
}

}  // namespace qchain
