#include "extent/raw_copy.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "extent/pass.h"
#include "extent/zero.h"

namespace qchain {

namespace {

// The unit in which zeros are looked for and holes are made.
constexpr std::uint64_t kBlock = std::uint64_t{64} << 10;

// Writes what is not zeros.
class CopyStage : public Stage {
 public:
  /// `origin`: the offset in the source of the target's first byte.
  CopyStage(CopyTarget& target, GuestOffset origin, unsigned buffers, CopyResult& result)
      : is_stream_(target.is_stream()), origin_(origin), result_(result) {
    for (unsigned i = 0; i < buffers; ++i) writers_.push_back(target.open_writer());
  }

  void wait(unsigned buffer) override { writers_[buffer]->wait(); }

  void fetched(Batch& batch) override { split_zeros(batch.piece, batch.data); }

  void commit(const Batch& batch) override {
    for (const WriteRequest& part : parts_) {
      (part.bytes.empty() ? result_.zero_bytes : result_.data_bytes) += part.range.length();
    }
    if (is_stream_) writers_[batch.buffer]->start(parts_);
  }

  void store(const Batch& batch) override {
    if (!is_stream_) writers_[batch.buffer]->start(parts_);
  }

 private:
  // Runs of blocks that are all zeros, and the bytes between them.
  void split_zeros(const Piece& piece, std::span<const ReadRequest> data) {
    parts_.clear();
    for (const Extent& run : piece.runs) {
      if (run.kind != Kind::Data) {
        add(run.range, {});
        continue;
      }
      GuestOffset begin = run.range.begin;
      for (std::span<const std::byte> rest = data.front().into; !rest.empty();) {
        const std::span<const std::byte> block = rest.first(std::min(rest.size(), kBlock));
        add({begin, begin + block.size()}, is_zero(block) ? block.first(0) : block);
        begin = begin + block.size();
        rest = rest.subspan(block.size());
      }
      data = data.subspan(1);
    }
  }

  void add(const GuestRange& range, std::span<const std::byte> bytes) {
    const WriteRequest part{guest_range(range.begin - origin_, range.length()), bytes};
    if (!parts_.empty() && parts_.back().bytes.empty() == bytes.empty()) {
      WriteRequest& last = parts_.back();
      const bool joined = last.bytes.data() + last.bytes.size() == bytes.data();
      if (bytes.empty() || joined) {
        last.range.end = part.range.end;
        if (joined) last.bytes = {last.bytes.data(), last.bytes.size() + bytes.size()};
        return;
      }
    }
    parts_.push_back(part);
  }

  const bool is_stream_;
  const GuestOffset origin_;
  CopyResult& result_;
  std::vector<std::unique_ptr<TargetWriter>> writers_;  // one for each buffer
  std::vector<WriteRequest> parts_;                     // of the piece
};

}  // namespace

CopyResult copy_raw(BlockDevice& source, const GuestRange& range, CopyTarget& target,
                    const CopyOptions& options) {
  CopyResult result;
  Pass pass;
  pass.open_reader = [&] { return source.open_reader(); };
  // Whatever is not data is zeros.
  pass.pieces = pieces_of(as_zeros(normalise(extents_of(source, range), kBlock, Position::Bottom)));
  pass.workers = plan_workers(options.workers, pass.piece_bytes);
  pass.stages = options.stages;
  pass.stages.push_back(
      [&] { return std::make_unique<CopyStage>(target, range.begin, pass.workers.buffers, result); });
  pass.progress = [&](std::uint64_t done) { options.progress(GuestOffset(done) - range.begin); };
  run(pass);
  return result;
}

CopyResult copy_raw(BlockDevice& source, const GuestRange& range, const File& target, TargetContent content,
                    const CopyOptions& options) {
  if (content == TargetContent::Zeros) target.resize(range.length());
  FileTarget file(target, content);
  return copy_raw(source, range, file, options);
}

}  // namespace qchain
