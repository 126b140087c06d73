#include "verify/device_digest.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "extent/scan.h"

namespace qchain {

namespace {

// Hashes the blocks of one worker's pieces, and adds them to the disk's digest in order.
class DigestWatcher : public PieceWatcher {
 public:
  explicit DigestWatcher(DiskDigest& disk, Algorithm algorithm) : disk_(disk), hasher_(algorithm) {}

  void plan(const Piece& piece, const Extents&) override { runs_ = piece.runs; }

  void fetched(std::span<const ReadRequest> runs) override {
    digests_.clear();
    for (const ReadRequest& run : runs) {
      for (std::span<const std::byte> rest = run.into; !rest.empty();) {
        const std::size_t step = std::min<std::uint64_t>(rest.size(), kDigestBlock);
        digests_.push_back(hasher_.of(rest.first(step)));
        rest = rest.subspan(step);
      }
    }
  }

  void commit() override {
    auto digest = digests_.begin();
    for (const Extent& run : runs_) {
      if (run.kind != Kind::Data) {
        disk_.add_zeros(run.range.length());
        continue;
      }
      for (std::uint64_t left = run.range.length(); left > 0;) {
        const std::uint64_t step = std::min(left, kDigestBlock);
        disk_.add_block(*digest++, step);
        left -= step;
      }
    }
  }

 private:
  DiskDigest& disk_;
  Hasher hasher_;
  Extents runs_;
  std::vector<Digest> digests_;  // of the blocks that were read
};

}  // namespace

WatcherFactory digest_watcher(DiskDigest& disk, Algorithm algorithm) {
  return [&disk, algorithm] { return std::make_unique<DigestWatcher>(disk, algorithm); };
}

Digest digest_of(BlockDevice& device, std::uint64_t length, const DigestOptions& options) {
  DiskDigest disk(options.algorithm);
  scan([&] { return device.open_reader(); },
       pieces_of(normalise(extents_of(device, guest_range(0, length)), kDigestBlock, Position::Bottom)),
       [&] { return std::make_unique<DigestWatcher>(disk, options.algorithm); },
       {options.workers, PieceLimits{}.data, options.progress});
  return disk.finish();
}

}  // namespace qchain
