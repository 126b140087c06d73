#include "qcow2/layer_writer.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "extent/background_writes.h"
#include "extent/engine.h"
#include "extent/page_buffer.h"
#include "extent/piece.h"
#include "extent/zero.h"
#include "qcow2/clean_comparison.h"
#include "qcow2/format.h"
#include "qcow2/increment.h"
#include "qcow2/layer_pieces.h"
#include "qcow2/placement.h"

namespace qchain {

namespace {

constexpr std::uint64_t kBoundary = std::uint64_t{64} << 10;
constexpr std::uint64_t kPieceBytes = std::uint64_t{2} << 20;
constexpr std::uint64_t kMaxEmptyClusters = std::uint64_t{64} << 10;  // L2 tables of one piece

// With many workers pieces are smaller, and with compression too, to leave memory for the streams.
PieceLimits limits_for(const Geometry& geometry, const LayerOptions& options) {
  PieceLimits limits;
  limits.boundary = std::max(kBoundary, geometry.cluster_size());
  if (options.observer) limits.boundary = std::max(limits.boundary, options.observer->block_size);
  const std::uint64_t share = kMaxPieceMemory / options.workers / (options.compression ? 3 : 1);
  limits.data = std::max(align_down(std::min(kPieceBytes, share), limits.boundary), 2 * limits.boundary);
  limits.empty = kMaxEmptyClusters * geometry.cluster_size();
  return limits;
}

// How many bytes the buffer of one piece needs: its last unit is padded.
std::uint64_t capacity_for(const Geometry& geometry, const PieceLimits& limits) {
  return limits.data + geometry.unit();
}

// How many workers and buffers fit in memory, beside the L1 table.
struct WorkerPlan {
  unsigned workers = 1;
  unsigned buffers = 1;  // of each: with two, the next piece is read while the last one is written
};

WorkerPlan plan_workers(const Geometry& geometry, const PieceLimits& limits, const LayerOptions& options) {
  const std::uint64_t memory =
      kMaxPieceMemory - std::min(geometry.l1_entries() * sizeof(std::uint64_t), kMaxPieceMemory / 4 * 3);
  const std::uint64_t buffer = capacity_for(geometry, limits);
  std::uint64_t fixed = 0;
  if (options.compression) {
    fixed = buffer + Compressor::memory_for(*options.compression, geometry.cluster_size());
  }
  WorkerPlan plan;
  plan.workers =
      static_cast<unsigned>(std::clamp<std::uint64_t>(memory / (buffer + fixed), 1, options.workers));
  if (plan.workers * (2 * buffer + fixed) <= memory) plan.buffers = 2;
  return plan;
}

// What the layer stores. In an overlay, a last sector that the disk fills only in part is always stored, or
// the parent's bytes would be visible past the end of the disk.
ExtentSource stored_kinds(BlockDevice& source, const Geometry& geometry, Position position) {
  ExtentSource kinds = extents_of(source);
  const std::uint64_t whole_sectors = align_down(source.size(), kSectorSize);
  if (position == Position::Overlay && whole_sectors != source.size()) {
    const Extents tail{{guest_range(0, whole_sectors), Kind::Inherit},
                       {{GuestOffset(whole_sectors), GuestOffset(source.size())}, Kind::Data}};
    kinds = zip(std::move(kinds), stream(tail),
                [](Kind kind, Kind in_tail) { return in_tail == Kind::Data ? in_tail : kind; });
  }
  return normalise(std::move(kinds), geometry.unit(), position);
}

struct Job {
  const Geometry geometry;
  const Position position;
  const File& file;
  const LayerOptions& options;
  const PieceLimits limits;
  const WorkerPlan worker_plan;
  LayerPieces pieces;
  Placement placement;
  WriteQueue queue;
  WrittenLayer written{};
  std::uint64_t room = 0;  // length of the file

  // What is inherited as a whole if it was not read: blocks are recorded whole, units are stored whole.
  std::uint64_t unread_unit() const {
    return std::max(geometry.unit(), options.observer ? options.observer->block_size : 0);
  }
};

// How one cluster of a piece, or a run of zero clusters, is stored.
struct ClusterPlan {
  std::uint64_t index = 0;
  std::uint64_t count = 1;  // more than one: all of them zeros
  std::uint32_t data = 0;   // by unit
  std::uint32_t zero = 0;
  std::size_t first_part = 0;
  std::size_t part_count = 0;
  std::size_t stream_begin = 0;
  std::size_t stream_length = 0;  // 0: not compressed
};

// Neighbouring units of one cluster, with their bytes.
struct ClusterPart {
  unsigned unit = 0;
  std::span<const std::byte> bytes;
};

// The data of a piece, until it is written.
struct PieceBuffer {
  PieceBuffer(WriteQueue& queue, std::uint64_t capacity) : buffer(capacity), writes(queue) {}

  PageBuffer buffer;
  std::vector<std::byte> streams;
  std::vector<FinishedTable> tables;
  BackgroundWrites writes;  // destroyed first
};

class LayerWorker : public Worker {
 public:
  LayerWorker(Job& job, std::unique_ptr<Reader> reader) : job_(job), reader_(std::move(reader)) {
    const std::uint64_t capacity = capacity_for(job.geometry, job.limits);
    for (unsigned i = 0; i < job.worker_plan.buffers; ++i) {
      buffers_.push_back(std::make_unique<PieceBuffer>(job.queue, capacity));
    }
    if (job.options.observer) watcher_ = job.options.observer->make_watcher();
    if (job.options.compression) compressor_.emplace(*job.options.compression);
    if (job.options.increment != nullptr) {
      comparison_.emplace(*job.options.increment, job.geometry.unit(), job.unread_unit());
    }
  }

  bool take() override {
    if (!job_.pieces.next(piece_, stored_)) return false;
    if (comparison_) {
      clean_ =
          job_.options.increment->take_clean({piece_.runs.front().range.begin, piece_.runs.back().range.end});
    }
    if (watcher_) watcher_->plan(piece_, stored_);
    return true;
  }

  void fetch() override {
    std::swap(buffers_.front(), buffers_.back());
    current().writes.wait();
    current().tables.clear();
    const std::vector<ReadRequest> fetched = read();
    if (!clean_.empty()) {
      comparison_->apply(clean_, fetched, piece_, stored_);
      if (watcher_) watcher_->revised(piece_, stored_);
    }
    if (watcher_) watcher_->fetched(fetched);
    plans_.clear();
    parts_.clear();
    current().streams.clear();
    usage_ = {};
    auto data = fetched.begin();
    for (const Extent& stored : stored_) {
      switch (stored.kind) {
        case Kind::Inherit:
          usage_.inherited_bytes += stored.range.length();
          break;
        case Kind::Zero:
          plan_zeros(stored.range);
          break;
        case Kind::Data:
          while (data->range().end <= stored.range.begin) ++data;
          plan_data({stored.range.begin,
                     data->into.subspan(stored.range.begin - data->begin, stored.range.length())});
          break;
      }
    }
    if (compressor_) compress();
  }

  void commit() override {
    for (const ClusterPlan& plan : plans_) place(plan);
    current().tables = job_.placement.take_finished();
    for (const FinishedTable& table : current().tables) writes_.add(table.at, table.bytes);
    WrittenLayer& total = job_.written;
    total.data_bytes += usage_.data_bytes;
    total.zero_bytes += usage_.zero_bytes;
    total.inherited_bytes += usage_.inherited_bytes;
    total.compressed_clusters += usage_.compressed_clusters;
    total.read_bytes += piece_.data_bytes;
    make_room();
    if (watcher_) watcher_->commit();
    job_.options.progress(piece_.runs.back().range.end.bytes());
  }

  void store() override { current().writes.start(writes_.take()); }

  void finish() override {
    for (const std::unique_ptr<PieceBuffer>& buffer : buffers_) buffer->writes.wait();
  }

 private:
  const Geometry& geometry() const { return job_.geometry; }
  // Keeps the file longer than what is written to it: writes that extend a file are serialised.
  void make_room() {
    constexpr std::uint64_t kStep = std::uint64_t{1} << 30;
    if (job_.placement.file_bytes() <= job_.room) return;
    job_.room = align_up(job_.placement.file_bytes(), kStep) + kStep;
    try {
      job_.file.resize(job_.room);
    } catch (const Error&) {
      // Such a length may exceed a limit that the finished file does not.
      job_.room = std::numeric_limits<std::uint64_t>::max();
    }
  }
  PieceBuffer& current() { return *buffers_.front(); }

  // Reads the piece's data, one request per run. Only the last unit of the disk can be incomplete; it is
  // padded with zeros in the buffer.
  std::vector<ReadRequest> read() {
    std::vector<ReadRequest> batch;
    std::span<std::byte> free(current().buffer);
    for (const Extent& run : piece_.runs) {
      if (run.kind != Kind::Data) continue;
      const std::uint64_t length = run.range.length();
      // A run may begin inside a unit, if blocks are smaller than units.
      const std::uint64_t whole =
          align_up(run.range.end.bytes(), geometry().unit()) - run.range.begin.bytes();
      batch.push_back({run.range.begin, free.first(length)});
      std::ranges::fill(free.subspan(length, whole - length), std::byte{0});
      free = free.subspan(whole);
    }
    if (job_.options.salvage) {
      read_watched(*reader_, batch, *watcher_);
    } else {
      reader_->read(batch);
    }
    return batch;
  }

  unsigned unit_of(GuestOffset offset) const {
    return static_cast<unsigned>(geometry().offset_in_cluster(offset.bytes()) / geometry().unit());
  }

  ClusterPlan& plan_of(GuestOffset offset) {
    const std::uint64_t index = offset.bytes() / geometry().cluster_size();
    if (plans_.empty() || plans_.back().index + plans_.back().count <= index) {
      plans_.push_back({.index = index, .first_part = parts_.size()});
    }
    return plans_.back();
  }

  void plan_data(const ReadRequest& run) {
    const std::uint64_t unit = geometry().unit();
    for (std::uint64_t at = 0; at < run.into.size(); at += unit) {
      const GuestOffset offset = run.begin + at;
      const std::span<const std::byte> bytes(run.into.data() + at, unit);  // with its zero padding
      const std::uint64_t length = std::min(unit, run.into.size() - at);
      if (is_zero(bytes)) {
        plan_zeros({offset, offset + length});
        continue;
      }
      usage_.data_bytes += length;
      ClusterPlan& plan = plan_of(offset);
      plan.data |= std::uint32_t{1} << unit_of(offset);
      ClusterPart* const last = plan.part_count > 0 ? &parts_.back() : nullptr;
      // Adjacent in the buffer does not imply adjacent in the cluster.
      if (last != nullptr && last->bytes.data() + last->bytes.size() == bytes.data() &&
          last->unit + last->bytes.size() / unit == unit_of(offset)) {
        last->bytes = {last->bytes.data(), last->bytes.size() + bytes.size()};
      } else {
        parts_.push_back({unit_of(offset), bytes});
        ++plan.part_count;
      }
    }
  }

  void plan_zeros(const GuestRange& range) {
    if (job_.position == Position::Bottom) {
      usage_.inherited_bytes += range.length();
      return;
    }
    usage_.zero_bytes += range.length();
    const std::uint64_t cluster_size = geometry().cluster_size();
    for (GuestRange rest = range; !rest.empty();) {
      const GuestOffset cluster(align_down(rest.begin.bytes(), cluster_size));
      ClusterPlan& plan = plan_of(rest.begin);
      const std::uint64_t whole = rest.length() / cluster_size;
      if (rest.begin == cluster && whole > 1) {
        plan.count = whole;
        plan.zero = geometry().all_units();
        rest.begin = rest.begin + whole * cluster_size;
        continue;
      }
      const GuestOffset end = std::min(rest.end, cluster + cluster_size);
      for (GuestOffset at = rest.begin; at < end; at = at + geometry().unit()) {
        plan.zero |= std::uint32_t{1} << unit_of(at);
      }
      rest.begin = end;
    }
  }

  void compress() {
    for (ClusterPlan& plan : plans_) {
      if (plan.data != geometry().all_units()) continue;
      plan.stream_begin = current().streams.size();
      plan.stream_length = compressor_->compress(parts_[plan.first_part].bytes, current().streams);
      if (plan.stream_length != 0) ++usage_.compressed_clusters;
    }
  }

  void place(const ClusterPlan& plan) {
    if (plan.stream_length != 0) {
      const HostOffset at = job_.placement.place_compressed(plan.index, plan.stream_length);
      writes_.add(at, std::span(current().streams).subspan(plan.stream_begin, plan.stream_length));
      return;
    }
    if (plan.data == 0) {
      for (std::uint64_t i = 0; i < plan.count; ++i) job_.placement.place_zero(plan.index + i, plan.zero);
      return;
    }
    const HostOffset at = job_.placement.place_data(plan.index, plan.data, plan.zero);
    for (std::size_t i = 0; i < plan.part_count; ++i) {
      const ClusterPart& part = parts_[plan.first_part + i];
      writes_.add(at + part.unit * geometry().unit(), part.bytes);
    }
  }

  Job& job_;
  std::unique_ptr<Reader> reader_;
  std::optional<Compressor> compressor_;
  std::optional<CleanComparison> comparison_;
  std::vector<CleanRange> clean_;  // of the piece
  std::unique_ptr<PieceWatcher> watcher_;
  std::vector<std::unique_ptr<PieceBuffer>> buffers_;  // this piece's; then one whose writes may be in flight
  Piece piece_;                                        // what is read, block by block
  Extents stored_;                                     // what of it is stored, unit by unit
  std::vector<ClusterPlan> plans_;                     // in guest order
  std::vector<ClusterPart> parts_;
  WrittenLayer usage_;  // of this piece
  WriteList writes_;
};

}  // namespace

WrittenLayer write_layer(BlockDevice& source, const File& file, const LayerOptions& options) {
  const Geometry geometry(options.cluster_bits, options.extended_l2, align_up(source.size(), kSectorSize));
  const PieceLimits limits = limits_for(geometry, options);
  Job job{geometry,
          options.position,
          file,
          options,
          limits,
          plan_workers(geometry, limits, options),
          {stored_kinds(source, geometry, options.position),
           options.observer ? options.observer->block_size : geometry.unit(), options.position,
           options.observer ? options.observer->also_read : GuestRange{}, limits},
          Placement(geometry),
          WriteQueue(file)};
  run_workers(
      [&]() -> std::unique_ptr<Worker> {
        std::unique_ptr<Reader> reader = source.open_reader();
        if (!reader) return nullptr;
        return std::make_unique<LayerWorker>(job, std::move(reader));
      },
      job.worker_plan.workers);

  Header& header = job.written.header;
  header.cluster_bits = options.cluster_bits;
  header.virtual_size = geometry.virtual_size();
  if (options.extended_l2) header.incompatible_features |= kIncompatibleExtendedL2;
  if (options.compression && options.compression->type != Compression::Deflate) {
    header.incompatible_features |= kIncompatibleCompression;
    header.compression_type = static_cast<std::uint8_t>(options.compression->type);
  }
  job.placement.finish(header);
  for (const FinishedTable& table : job.placement.take_finished()) {
    file.write(table.at, table.bytes);
  }
  job.written.file_bytes = job.placement.file_bytes();
  // Cuts off what make_room() added, or pads the file to whole clusters.
  file.resize(job.written.file_bytes);
  return std::move(job.written);
}

void write_header(const File& file, const Header& header) {
  file.write(HostOffset(0), encode_header(header));
}

}  // namespace qchain
