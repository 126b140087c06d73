#include "extent/raw_copy.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "extent/engine.h"
#include "extent/page_buffer.h"
#include "extent/piece.h"
#include "extent/zero.h"

namespace qchain {

namespace {

// The unit in which zeros are looked for and holes are made.
constexpr std::uint64_t kBlock = std::uint64_t{64} << 10;

struct Copy {
  BlockDevice& source;
  const GuestRange range;
  CopyTarget& target;
  const CopyOptions& options;
  PiecePlanner planner;
  CopyResult result;

  GuestRange on_target(const GuestRange& part) const {
    return {GuestOffset(part.begin - range.begin), GuestOffset(part.end - range.begin)};
  }
};

// The data of a piece, until it is written.
struct PieceBuffer {
  explicit PieceBuffer(CopyTarget& target) : buffer(PieceLimits{}.data), writer(target.open_writer()) {}

  PageBuffer buffer;
  std::unique_ptr<TargetWriter> writer;  // destroyed first
};

class CopyWorker : public Worker {
 public:
  CopyWorker(Copy& copy, std::unique_ptr<Reader> reader) : copy_(copy), reader_(std::move(reader)) {
    // With two, the next piece is read while the last one is written; if there is memory for it.
    const std::size_t count = 2 * PieceLimits{}.data * copy.options.workers <= kMaxPieceMemory ? 2 : 1;
    for (std::size_t i = 0; i < count; ++i) buffers_.push_back(std::make_unique<PieceBuffer>(copy.target));
    if (copy.options.make_watcher) watcher_ = copy.options.make_watcher();
  }

  bool take() override {
    if (!copy_.planner.next(piece_)) return false;
    if (watcher_) watcher_->plan(piece_, piece_.runs);
    return true;
  }

  void fetch() override {
    std::swap(buffers_.front(), buffers_.back());
    current().writer->wait();
    std::vector<ReadRequest> batch;
    std::span<std::byte> free(current().buffer);
    for (const Extent& run : piece_.runs) {
      if (run.kind != Kind::Data) continue;
      batch.push_back({run.range.begin, free.first(run.range.length())});
      free = free.subspan(run.range.length());
    }
    if (copy_.options.salvage) {
      read_watched(*reader_, batch, *watcher_);
    } else {
      reader_->read(batch);
    }
    if (watcher_) watcher_->fetched(batch);
    split_zeros(batch);
  }

  void commit() override {
    for (const WriteRequest& part : parts_) {
      (part.bytes.empty() ? copy_.result.zero_bytes : copy_.result.data_bytes) += part.range.length();
    }
    if (copy_.target.is_stream()) current().writer->start(parts_);
    if (watcher_) watcher_->commit();
    copy_.options.progress(piece_.runs.back().range.end - copy_.range.begin);
  }

  void store() override {
    if (!copy_.target.is_stream()) current().writer->start(parts_);
  }

  void finish() override {
    for (const std::unique_ptr<PieceBuffer>& buffer : buffers_) buffer->writer->wait();
  }

 private:
  PieceBuffer& current() { return *buffers_.front(); }

  // Runs of blocks that are all zeros, and the bytes between them.
  void split_zeros(std::span<const ReadRequest> batch) {
    parts_.clear();
    for (const Extent& run : piece_.runs) {
      if (run.kind != Kind::Data) {
        add(run.range, {});
        continue;
      }
      GuestOffset begin = run.range.begin;
      for (std::span<const std::byte> rest = batch.front().into; !rest.empty();) {
        const std::span<const std::byte> block = rest.first(std::min(rest.size(), kBlock));
        add({begin, begin + block.size()}, is_zero(block) ? block.first(0) : block);
        begin = begin + block.size();
        rest = rest.subspan(block.size());
      }
      batch = batch.subspan(1);
    }
  }

  void add(const GuestRange& range, std::span<const std::byte> bytes) {
    const WriteRequest part{copy_.on_target(range), bytes};
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

  Copy& copy_;
  std::unique_ptr<Reader> reader_;
  std::unique_ptr<PieceWatcher> watcher_;
  std::vector<std::unique_ptr<PieceBuffer>> buffers_;  // this piece's; then one whose writes may be in flight
  Piece piece_;
  std::vector<WriteRequest> parts_;
};

}  // namespace

CopyResult copy_raw(BlockDevice& source, const GuestRange& range, CopyTarget& target,
                    const CopyOptions& options) {
  // Whatever is not data is zeros.
  ExtentSource kinds = as_zeros(normalise(extents_of(source, range), kBlock, Position::Bottom));
  Copy copy{source, range, target, options, PiecePlanner(std::move(kinds), {}), {}};
  run_workers(
      [&]() -> std::unique_ptr<Worker> {
        std::unique_ptr<Reader> reader = source.open_reader();
        if (!reader) return nullptr;
        return std::make_unique<CopyWorker>(copy, std::move(reader));
      },
      options.workers);
  return copy.result;
}

CopyResult copy_raw(BlockDevice& source, const GuestRange& range, const File& target, TargetContent content,
                    const CopyOptions& options) {
  if (content == TargetContent::Zeros) target.resize(range.length());
  FileTarget file(target, content);
  return copy_raw(source, range, file, options);
}

}  // namespace qchain
