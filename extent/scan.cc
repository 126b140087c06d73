#include "extent/scan.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "extent/engine.h"
#include "extent/page_buffer.h"

namespace qchain {

namespace {

constexpr std::size_t kBlock = std::size_t{64} << 10;

struct Scan {
  const ReaderFactory& open_reader;
  const PieceSource& pieces;
  const WatcherFactory& make_watcher;
  const ScanOptions& options;
};

class ScanWorker : public Worker {
 public:
  ScanWorker(const Scan& scan, std::unique_ptr<Reader> reader)
      : scan_(scan),
        reader_(std::move(reader)),
        watcher_(scan.make_watcher()),
        buffer_(scan.options.piece_bytes) {}

  bool take() override {
    if (!scan_.pieces(piece_, stored_)) return false;
    watcher_->plan(piece_, stored_);
    return true;
  }

  void fetch() override {
    std::vector<ReadRequest> batch;
    std::span<std::byte> free(buffer_);
    for (const Extent& run : piece_.runs) {
      if (run.kind != Kind::Data) continue;
      batch.push_back({run.range.begin, free.first(run.range.length())});
      free = free.subspan(run.range.length());
    }
    read_watched(*reader_, batch, *watcher_);
    watcher_->fetched(batch);
  }

  void commit() override {
    watcher_->commit();
    scan_.options.progress(piece_.runs.back().range.end.bytes());
  }

 private:
  const Scan& scan_;
  std::unique_ptr<Reader> reader_;
  std::unique_ptr<PieceWatcher> watcher_;
  PageBuffer buffer_;  // hashing is faster if it is aligned to cache lines
  Piece piece_;
  Extents stored_;
};

}  // namespace

void PieceWatcher::revised(const Piece&, const Extents&) {}

void PieceWatcher::unread(const GuestRange&, const Error&) { throw; }

PieceSource pieces_of(ExtentSource source, const PieceLimits& limits) {
  return [planner = PiecePlanner(std::move(source), limits)](Piece& piece, Extents& stored) mutable {
    if (!planner.next(piece)) return false;
    stored = piece.runs;
    return true;
  };
}

void read_watched(Reader& reader, std::span<const ReadRequest> batch, PieceWatcher& watcher) {
  try {
    reader.read(batch);
    return;
  } catch (const Error& error) {
    if (!is_local(error)) throw;
  }
  for (ReadRequest rest : batch) {
    while (!rest.into.empty()) {
      const ReadRequest block{rest.begin, rest.into.first(std::min(kBlock, rest.into.size()))};
      try {
        reader.read(std::span(&block, 1));
      } catch (const Error& error) {
        if (!is_local(error)) throw;
        std::ranges::fill(block.into, std::byte{0});
        watcher.unread(block.range(), error);
      }
      rest = {block.range().end, rest.into.subspan(block.into.size())};
    }
  }
}

void scan(const ReaderFactory& open_reader, const PieceSource& pieces, const WatcherFactory& make_watcher,
          const ScanOptions& options) {
  const Scan scan{open_reader, pieces, make_watcher, options};
  run_workers(
      [&]() -> std::unique_ptr<Worker> {
        std::unique_ptr<Reader> reader = open_reader();
        if (!reader) return nullptr;
        return std::make_unique<ScanWorker>(scan, std::move(reader));
      },
      options.workers);
}

}  // namespace qchain
