#include "verify/device_digest.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "extent/engine.h"
#include "extent/piece.h"

namespace qchain {

namespace {

struct Job {
  const DigestOptions& options;
  PiecePlanner planner;
  DiskDigest disk;
};

class DigestWorker : public Worker {
 public:
  DigestWorker(Job& job, std::unique_ptr<Reader> reader)
      : job_(job), reader_(std::move(reader)), hasher_(job.options.algorithm), buffer_(PieceLimits{}.data) {}

  bool take() override { return job_.planner.next(piece_); }

  void fetch() override {
    std::vector<ReadRequest> batch;
    std::span<std::byte> free(buffer_);
    for (const Extent& run : piece_.runs) {
      if (run.kind != Kind::Data) continue;
      batch.push_back({run.range.begin, free.first(run.range.length())});
      free = free.subspan(run.range.length());
    }
    reader_->read(batch);
    digests_.clear();
    for (const ReadRequest& request : batch) {
      for (std::span<const std::byte> rest = request.into; !rest.empty();) {
        const std::size_t step = std::min<std::uint64_t>(rest.size(), kDigestBlock);
        digests_.push_back(hasher_.of(rest.first(step)));
        rest = rest.subspan(step);
      }
    }
  }

  void settle() override {
    auto digest = digests_.begin();
    for (const Extent& run : piece_.runs) {
      if (run.kind != Kind::Data) {
        job_.disk.add_zeros(run.range.length());
        continue;
      }
      for (std::uint64_t left = run.range.length(); left > 0;) {
        const std::uint64_t step = std::min(left, kDigestBlock);
        job_.disk.add_block(*digest++, step);
        left -= step;
      }
    }
    job_.options.progress(piece_.runs.back().range.end.bytes());
  }

 private:
  Job& job_;
  std::unique_ptr<Reader> reader_;
  Hasher hasher_;
  std::vector<std::byte> buffer_;
  Piece piece_;
  std::vector<Digest> digests_;  // of the blocks that were read
};

}  // namespace

Digest digest_of(BlockDevice& device, std::uint64_t length, const DigestOptions& options) {
  ExtentSource kinds = normalise(extents_of(device, guest_range(0, length)), kDigestBlock, Position::Bottom);
  Job job{options, PiecePlanner(std::move(kinds), {}), DiskDigest(options.algorithm)};
  run_workers(
      [&]() -> std::unique_ptr<Worker> {
        std::unique_ptr<Reader> reader = device.open_reader();
        if (!reader) return nullptr;
        return std::make_unique<DigestWorker>(job, std::move(reader));
      },
      options.workers);
  return job.disk.finish();
}

}  // namespace qchain
