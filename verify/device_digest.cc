#include "verify/device_digest.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "extent/pass.h"

namespace qchain {

namespace {

// Hashes the blocks of one worker's pieces, and adds them to the disk's digest in order.
class DigestStage : public Stage {
 public:
  explicit DigestStage(DiskDigest& disk, Algorithm algorithm) : disk_(disk), hasher_(algorithm) {}

  void fetched(Batch& batch) override {
    digests_.clear();
    for (const ReadRequest& run : batch.data) {
      for (std::span<const std::byte> rest = run.into; !rest.empty();) {
        const std::size_t step = std::min<std::uint64_t>(rest.size(), kDigestBlock);
        digests_.push_back(hasher_.of(rest.first(step)));
        rest = rest.subspan(step);
      }
    }
  }

  void commit(const Batch& batch) override {
    auto digest = digests_.begin();
    for (const Extent& run : batch.piece.runs) {
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
  std::vector<Digest> digests_;  // of the blocks that were read
};

}  // namespace

StageFactory digest_stage(DiskDigest& disk, Algorithm algorithm) {
  return [&disk, algorithm] { return std::make_unique<DigestStage>(disk, algorithm); };
}

Digest digest_of(BlockDevice& device, std::uint64_t length, const DigestOptions& options) {
  DiskDigest disk(options.algorithm);
  Pass pass;
  pass.open_reader = [&] { return device.open_reader(); };
  pass.pieces =
      pieces_of(normalise(extents_of(device, guest_range(0, length)), kDigestBlock, Position::Bottom));
  pass.stages = {digest_stage(disk, options.algorithm)};
  pass.workers.workers = options.workers;
  pass.progress = options.progress;
  run(pass);
  return disk.finish();
}

}  // namespace qchain
