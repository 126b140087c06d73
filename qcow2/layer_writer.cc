#include "qcow2/layer_writer.h"

#include <sys/uio.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "extent/engine.h"
#include "extent/piece.h"
#include "extent/zero.h"
#include "qcow2/placement.h"

namespace qchain {

namespace {

constexpr std::uint64_t kDigestBlock = std::uint64_t{64} << 10;
constexpr std::uint64_t kPieceBytes = std::uint64_t{2} << 20;
constexpr std::uint64_t kMaxEmptyClusters = std::uint64_t{64} << 10;  // L2 tables of one piece

PieceLimits limits_for(const Geometry& geometry) {
  PieceLimits limits;
  limits.boundary = std::max(kDigestBlock, geometry.cluster_size());
  limits.data = std::max(kPieceBytes, 2 * limits.boundary);
  limits.empty = kMaxEmptyClusters * geometry.cluster_size();
  return limits;
}

// What the layer stores. In an overlay, a last sector that the disk does not fill is written, or the
// parent's bytes would show behind the disk's end.
ExtentSource stored_kinds(BlockDevice& source, const Geometry& geometry, Position position) {
  ExtentSource kinds = extents_of(source);
  const std::uint64_t whole_sectors = align_down(source.size(), kSectorSize);
  if (position == Position::Overlay && whole_sectors != source.size()) {
    const Extents tail{{guest_range(0, whole_sectors), Kind::Inherit},
                       {{GuestOffset(whole_sectors), GuestOffset(source.size())}, Kind::Data}};
    kinds = zip(std::move(kinds), stream(tail),
                [](Kind kind, Kind in_tail) { return in_tail == Kind::Data ? in_tail : kind; });
  }
  return normalise(std::move(kinds), geometry.cluster_size(), position);
}

struct Job {
  const Geometry geometry;
  const Position position;
  const File& file;
  const LayerOptions& options;
  PiecePlanner planner;
  Placement placement;
  WrittenLayer written;
};

// Writes gathered so that neighbours in the file become one system call.
class WriteList {
 public:
  void clear() { runs_.clear(); }

  void add(HostOffset at, std::span<const std::byte> bytes) {
    if (runs_.empty() || runs_.back().end != at) runs_.push_back({at, at, {}});
    Run& run = runs_.back();
    run.end = run.end + bytes.size();
    std::byte* const data = const_cast<std::byte*>(bytes.data());  // pwritev only reads it
    if (!run.parts.empty() &&
        static_cast<std::byte*>(run.parts.back().iov_base) + run.parts.back().iov_len == data) {
      run.parts.back().iov_len += bytes.size();
    } else {
      run.parts.push_back({data, bytes.size()});
    }
  }

  void write_to(const File& file) {
    for (Run& run : runs_) file.write(run.begin, run.parts);
  }

 private:
  struct Run {
    HostOffset begin;
    HostOffset end;
    std::vector<iovec> parts;
  };
  std::vector<Run> runs_;
};

class LayerWorker : public Worker {
 public:
  LayerWorker(Job& job, std::unique_ptr<Reader> reader)
      : job_(job), reader_(std::move(reader)), buffer_(limits_for(job.geometry).data) {}

  bool take() override { return job_.planner.next(piece_); }

  void fetch() override {
    const std::uint64_t cluster_size = job_.geometry.cluster_size();
    std::vector<ReadRequest> batch;
    std::span<std::byte> free(buffer_);
    for (const Extent& run : piece_.runs) {
      if (run.kind != Kind::Data) continue;
      const std::uint64_t length = run.range.length();
      batch.push_back({run.range.begin, free.first(length)});
      // Only the disk's last cluster can be cut short; zeros fill it.
      const std::uint64_t whole = align_up(length, cluster_size);
      std::ranges::fill(free.subspan(length, whole - length), std::byte{0});
      free = free.subspan(whole);
    }
    reader_->read(batch);
    zero_clusters_.clear();
    for (std::size_t at = 0; at < buffer_.size() - free.size(); at += cluster_size) {
      zero_clusters_.push_back(is_zero(std::span(buffer_).subspan(at, cluster_size)));
    }
  }

  void settle() override {
    writes_.clear();
    tables_.clear();
    std::size_t fetched = 0;
    for (const Extent& run : piece_.runs) {
      const std::uint64_t first = run.range.begin.bytes() / job_.geometry.cluster_size();
      const std::uint64_t count = divide_up(run.range.length(), job_.geometry.cluster_size());
      switch (run.kind) {
        case Kind::Inherit:
          job_.written.inherited_bytes += run.range.length();
          break;
        case Kind::Zero:
          place_zero(first, count, run.range.length());
          break;
        case Kind::Data:
          place_data(run.range, first, count, fetched);
          fetched += count;
          break;
      }
    }
    job_.written.read_bytes += piece_.data_bytes;
    take_tables();
    job_.options.progress(piece_.runs.back().range.end.bytes());
  }

  void store() override { writes_.write_to(job_.file); }

 private:
  void place_zero(std::uint64_t first, std::uint64_t count, std::uint64_t bytes) {
    job_.written.zero_bytes += bytes;
    if (job_.position == Position::Overlay) job_.placement.place_zero(first, count);
  }

  void place_data(const GuestRange& range, std::uint64_t first, std::uint64_t count,
                  std::size_t fetched) {
    const std::uint64_t cluster_size = job_.geometry.cluster_size();
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t bytes = std::min(cluster_size, range.length() - i * cluster_size);
      if (zero_clusters_[fetched + i]) {
        place_zero(first + i, 1, bytes);
        continue;
      }
      job_.written.data_bytes += bytes;
      const HostOffset at = job_.placement.place_data(first + i);
      writes_.add(at, std::span(buffer_).subspan((fetched + i) * cluster_size, cluster_size));
    }
  }

  void take_tables() {
    tables_ = job_.placement.take_finished();
    for (const FinishedTable& table : tables_) writes_.add(table.at, table.bytes);
  }

  Job& job_;
  std::unique_ptr<Reader> reader_;
  std::vector<std::byte> buffer_;
  Piece piece_;
  std::vector<bool> zero_clusters_;  // of what was fetched, cluster by cluster
  std::vector<FinishedTable> tables_;
  WriteList writes_;
};

}  // namespace

WrittenLayer write_layer(BlockDevice& source, const File& file, const LayerOptions& options) {
  const Geometry geometry(options.cluster_bits, false, align_up(source.size(), kSectorSize));
  Job job{geometry,
          options.position,
          file,
          options,
          PiecePlanner(stored_kinds(source, geometry, options.position), limits_for(geometry)),
          Placement(geometry),
          {}};
  run_workers(
      [&]() -> std::unique_ptr<Worker> {
        std::unique_ptr<Reader> reader = source.open_reader();
        if (!reader) return nullptr;
        return std::make_unique<LayerWorker>(job, std::move(reader));
      },
      options.workers);

  Header& header = job.written.header;
  header.cluster_bits = options.cluster_bits;
  header.virtual_size = geometry.virtual_size();
  job.placement.finish(header);
  for (const FinishedTable& table : job.placement.take_finished()) {
    file.write(table.at, table.bytes);
  }
  job.written.file_bytes = job.placement.file_bytes();
  // The last thing placed is not the last thing written; nothing may end inside a cluster.
  file.resize(job.written.file_bytes);
  return std::move(job.written);
}

void write_header(const File& file, const Header& header) {
  file.write(HostOffset(0), encode_header(header));
}

}  // namespace qchain
