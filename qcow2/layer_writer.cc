#include "qcow2/layer_writer.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "extent/background_writes.h"
#include "extent/pass.h"
#include "extent/zero.h"
#include "qcow2/clean_comparison.h"
#include "qcow2/format.h"
#include "qcow2/increment.h"
#include "qcow2/layer_pieces.h"
#include "qcow2/placement.h"

namespace qchain {

namespace {

constexpr std::uint64_t kMaxEmptyClusters = std::uint64_t{64} << 10;  // L2 tables of one piece

// With compression there are streams beside the data.
PieceLimits piece_limits(const Geometry& geometry, const LayerOptions& options) {
  const std::uint64_t boundary = std::max(
      {PieceLimits{}.boundary, geometry.cluster_size(), options.observer ? options.observer->block_size : 0});
  PieceLimits limits = limits_for(options.workers, options.compression ? 3 : 1, boundary);
  limits.empty = kMaxEmptyClusters * geometry.cluster_size();
  return limits;
}

// Beside the L1 table, which is in memory until the end.
WorkerPlan worker_plan(const Geometry& geometry, std::uint64_t buffer, const LayerOptions& options) {
  const std::uint64_t tables =
      std::min(geometry.l1_entries() * sizeof(std::uint64_t), kMaxPieceMemory / 4 * 3);
  std::uint64_t fixed = 0;
  if (options.compression) {
    fixed = buffer + Compressor::memory_for(*options.compression, geometry.cluster_size());
  }
  return plan_workers(options.workers, buffer, fixed, kMaxPieceMemory - tables);
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

// What the workers share.
struct Job {
  const Geometry geometry;
  const Position position;
  const File& file;
  const std::optional<CompressionChoice> compression;
  const unsigned buffers;  // of each worker
  Placement placement;
  WriteQueue queue;
  WrittenLayer written{};
  std::uint64_t room = 0;  // length of the file
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

// What is written together with a buffer.
struct BufferWrites {
  explicit BufferWrites(WriteQueue& queue) : writes(queue) {}

  std::vector<std::byte> streams;
  std::vector<FinishedTable> tables;
  BackgroundWrites writes;  // destroyed first
};

// Places what a piece stores in the file, and writes it.
class LayerStage : public Stage {
 public:
  explicit LayerStage(Job& job) : job_(job) {
    for (unsigned i = 0; i < job.buffers; ++i) buffers_.push_back(std::make_unique<BufferWrites>(job.queue));
    if (job.compression) compressor_.emplace(*job.compression);
  }

  void wait(unsigned buffer) override {
    buffers_[buffer]->writes.wait();
    buffers_[buffer]->tables.clear();
  }

  void fetched(Batch& batch) override {
    plans_.clear();
    parts_.clear();
    usage_ = {};
    usage_.read_bytes = batch.piece.data_bytes;
    auto data = batch.data.begin();
    for (const Extent& stored : batch.piece.stored) {
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
    if (compressor_) compress(buffers_[batch.buffer]->streams);
  }

  void commit(const Batch& batch) override {
    BufferWrites& buffer = *buffers_[batch.buffer];
    for (const ClusterPlan& plan : plans_) place(plan, buffer.streams);
    buffer.tables = job_.placement.take_finished();
    for (const FinishedTable& table : buffer.tables) writes_.add(table.at, table.bytes);
    WrittenLayer& total = job_.written;
    total.data_bytes += usage_.data_bytes;
    total.zero_bytes += usage_.zero_bytes;
    total.inherited_bytes += usage_.inherited_bytes;
    total.compressed_clusters += usage_.compressed_clusters;
    total.read_bytes += usage_.read_bytes;
    make_room();
  }

  void store(const Batch& batch) override { buffers_[batch.buffer]->writes.start(writes_.take()); }

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

  void compress(std::vector<std::byte>& streams) {
    streams.clear();
    for (ClusterPlan& plan : plans_) {
      if (plan.data != geometry().all_units()) continue;
      plan.stream_begin = streams.size();
      plan.stream_length = compressor_->compress(parts_[plan.first_part].bytes, streams);
      if (plan.stream_length != 0) ++usage_.compressed_clusters;
    }
  }

  void place(const ClusterPlan& plan, std::span<const std::byte> streams) {
    if (plan.stream_length != 0) {
      const HostOffset at = job_.placement.place_compressed(plan.index, plan.stream_length);
      writes_.add(at, streams.subspan(plan.stream_begin, plan.stream_length));
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
  std::optional<Compressor> compressor_;
  std::vector<std::unique_ptr<BufferWrites>> buffers_;
  std::vector<ClusterPlan> plans_;  // of the piece, in guest order
  std::vector<ClusterPart> parts_;
  WrittenLayer usage_;
  WriteList writes_;
};

}  // namespace

WrittenLayer write_layer(BlockDevice& source, const File& file, const LayerOptions& options) {
  const Geometry geometry(options.cluster_bits, options.extended_l2, align_up(source.size(), kSectorSize));
  const PieceLimits limits = piece_limits(geometry, options);
  const std::uint64_t block_size = options.observer ? options.observer->block_size : geometry.unit();
  Pass pass;
  pass.piece_bytes = limits.data + geometry.unit();  // the last unit is padded
  pass.unit = geometry.unit();
  pass.workers = worker_plan(geometry, pass.piece_bytes, options);
  pass.progress = options.progress;
  pass.open_reader = [&] { return source.open_reader(); };
  LayerPieces pieces(stored_kinds(source, geometry, options.position), block_size, options.position,
                     options.observer ? options.observer->also_read : GuestRange{}, limits);
  pass.pieces = [&](Piece& piece) { return pieces.next(piece); };
  Job job{
      geometry,        options.position, file, options.compression, pass.workers.buffers, Placement(geometry),
      WriteQueue(file)};
  pass.stages = options.stages;
  if (options.increment != nullptr) {
    // What is inherited as a whole if it was not read: blocks are recorded whole, units are stored whole.
    pass.stages.push_back([&] {
      return std::make_unique<CleanComparison>(*options.increment, geometry.unit(),
                                               std::max(geometry.unit(), block_size));
    });
  }
  if (options.observer) pass.stages.push_back(options.observer->make_stage);
  pass.stages.push_back([&] { return std::make_unique<LayerStage>(job); });
  run(pass);

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
