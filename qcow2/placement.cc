#include "qcow2/placement.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <utility>

#include "extent/error.h"
#include "qcow2/format.h"

namespace qchain {

namespace {

constexpr unsigned kRefcountOrder = 4;
constexpr std::uint64_t kRefcountBytes = 2;
constexpr std::uint64_t kWord = sizeof(std::uint64_t);
constexpr unsigned kMaxRefcount = 0xFFFF;
constexpr std::uint64_t kL1Chunk = 64 << 10;

}  // namespace

Placement::Placement(const Geometry& geometry)
    : geometry_(geometry),
      refcounts_per_block_(geometry.cluster_size() / kRefcountBytes),
      l1_entries_(std::max<std::uint64_t>(
          1, geometry.l1_entries())),  // QEMU reports an empty table's cluster as leaked
      l1_chunk_(std::max(kL1Chunk, geometry.cluster_size())) {
  if (l1_entries_ > kMaxL1Bytes / kWord) {
    throw Error(
        Outcome::Usage,
        fmt::format("a disk of {} bytes with clusters of {} bytes needs an L1 table of {} bytes, above "
                    "QEMU's limit of {}; use larger clusters",
                    geometry.virtual_size(), geometry.cluster_size(), l1_entries_ * kWord, kMaxL1Bytes),
        Remedy::LargerClusters);
  }
  l1_.resize(divide_up(l1_entries_ * kWord, l1_chunk_));
  allocate(1);  // the header
}

HostOffset Placement::allocate(std::uint64_t clusters) {
  const std::uint64_t first = next_;
  for (std::uint64_t i = 0; i < clusters; ++i) count(next_++, 1);
  place_full_blocks();
  return host(first);
}

unsigned Placement::count(std::uint64_t cluster, unsigned references) {
  PageBuffer& block = open_blocks_[cluster / refcounts_per_block_];
  block.resize(geometry_.cluster_size());
  std::byte* const at = block.data() + cluster % refcounts_per_block_ * kRefcountBytes;
  const unsigned before = decode_struct<Be16>(at);
  encode_struct(Be16(static_cast<std::uint16_t>(before + references)), at);
  return before;
}

// Packs as QEMU does: into the cluster in which the last stream ended; if it does not fit, across the
// boundary if the next free cluster is adjacent, else from the beginning of the free one. Every stream is one
// reference to each cluster that it touches.
HostOffset Placement::allocate_stream(std::uint64_t length) {
  const std::uint64_t cluster_size = geometry_.cluster_size();
  const std::uint64_t open_cluster = (stream_end_ - 1) / cluster_size;
  if (stream_at_ < stream_end_ && count(open_cluster, 0) == kMaxRefcount) stream_at_ = stream_end_;
  if (stream_end_ - stream_at_ < length) {
    const bool neighbour = stream_at_ < stream_end_ && stream_end_ == next_ * cluster_size;
    if (!neighbour) stream_at_ = next_ * cluster_size;
    count(next_, 0);  // opens its refcount block, which has to stay open as long as streams come
    stream_end_ = ++next_ * cluster_size;
  }
  const std::uint64_t at = stream_at_;
  stream_at_ += length;
  for (std::uint64_t cluster = at / cluster_size; cluster <= (stream_at_ - 1) / cluster_size; ++cluster) {
    count(cluster, 1);
  }
  place_full_blocks();
  return HostOffset(at);
}

// A block is full when the cursor has passed its last cluster, and no stream can still add references. The
// block's own cluster is counted too, and may fill up the next block.
void Placement::place_full_blocks() {
  const std::uint64_t open_cluster =
      stream_at_ < stream_end_ ? (stream_end_ - 1) / geometry_.cluster_size() : kNone;
  while (!open_blocks_.empty() &&
         std::min(next_, open_cluster) / refcounts_per_block_ > open_blocks_.begin()->first) {
    PageBuffer block = std::move(open_blocks_.begin()->second);
    open_blocks_.erase(open_blocks_.begin());
    const std::uint64_t cluster = next_++;
    count(cluster, 1);
    refcount_blocks_.push_back(host(cluster));
    finished_.push_back({host(cluster), std::move(block)});
  }
}

// At the end the blocks have to count themselves: all of them get their clusters before any is written.
void Placement::place_last_blocks() {
  while (refcount_blocks_.size() <= open_blocks_.rbegin()->first) {
    const std::uint64_t cluster = next_++;
    count(cluster, 1);
    refcount_blocks_.push_back(host(cluster));
  }
  for (auto& [index, block] : open_blocks_) {
    finished_.push_back({refcount_blocks_[index], std::move(block)});
  }
  open_blocks_.clear();
}

void Placement::enter_l2(std::uint64_t l1_index) {
  if (l1_index == l1_index_) return;
  assert(l1_index_ == kNone || l1_index > l1_index_);
  close_l2();
  l1_index_ = l1_index;
  l2_.assign(geometry_.cluster_size(), std::byte{0});
}

void Placement::close_l2() {
  if (l1_index_ == kNone) return;
  const HostOffset at = allocate(1);
  set_l1(l1_index_, {at, true, 0});
  finished_.push_back({at, std::move(l2_)});
  l1_index_ = kNone;
}

// Chunks are allocated on demand: a disk of terabytes has an L1 table of megabytes, most of it perhaps empty.
void Placement::set_l1(std::uint64_t index, const L1Entry& entry) {
  PageBuffer& chunk = l1_[index * kWord / l1_chunk_];
  chunk.resize(l1_chunk_);
  encode_struct(Be64(encode_l1(entry)), chunk.data() + index * kWord % l1_chunk_);
}

HostOffset Placement::place_l1() {
  const std::uint64_t bytes = align_up(l1_entries_ * kWord, geometry_.cluster_size());
  const HostOffset at = allocate(bytes / geometry_.cluster_size());
  for (std::size_t i = 0; i < l1_.size(); ++i) {
    const std::uint64_t begin = i * l1_chunk_;
    l1_[i].resize(std::min(l1_chunk_, bytes - begin));
    finished_.push_back({at + begin, std::move(l1_[i])});
  }
  return at;
}

void Placement::set_entry(std::uint64_t index, const L2Entry& entry) {
  enter_l2(index / geometry_.l2_entries());
  std::byte* const at = l2_.data() + index % geometry_.l2_entries() * geometry_.l2_entry_bytes();
  const RawL2Entry raw = encode_l2(entry, geometry_);
  encode_struct(Be64(raw.entry), at);
  if (geometry_.extended_l2()) encode_struct(Be64(raw.bitmap), at + kWord);
}

HostOffset Placement::place_data(std::uint64_t index, std::uint32_t data, std::uint32_t zero) {
  enter_l2(index / geometry_.l2_entries());  // so that a finished table goes before the cluster
  L2Entry entry;
  entry.storage = Storage::Plain;
  entry.host = allocate(1);
  entry.copied = true;
  entry.allocated = data;
  entry.zero = zero;
  set_entry(index, entry);
  return entry.host;
}

HostOffset Placement::place_compressed(std::uint64_t index, std::uint64_t length) {
  enter_l2(index / geometry_.l2_entries());
  L2Entry entry;
  entry.storage = Storage::Compressed;
  entry.host = allocate_stream(length);
  entry.compressed_bytes = length;
  set_entry(index, entry);
  return entry.host;
}

void Placement::place_zero(std::uint64_t index, std::uint32_t zero) {
  L2Entry entry;
  entry.zero = zero;
  set_entry(index, entry);
}

std::vector<FinishedTable> Placement::take_finished() { return std::exchange(finished_, {}); }

// How many clusters the refcount table needs, counting itself and the refcount blocks not placed yet.
std::uint64_t Placement::refcount_table_clusters() const {
  std::uint64_t table = 1;
  std::uint64_t blocks = refcount_blocks_.size() + 1;
  for (;;) {
    const std::uint64_t clusters = next_ + table + (blocks - refcount_blocks_.size());
    const std::uint64_t needed = divide_up(clusters, refcounts_per_block_);
    const std::uint64_t needed_table = divide_up(needed * kWord, geometry_.cluster_size());
    if (needed <= blocks && needed_table <= table) return table;
    blocks = std::max(blocks, needed);
    table = std::max(table, needed_table);
  }
}

void Placement::finish(Header& header) {
  stream_at_ = stream_end_;  // no more streams come
  close_l2();
  header.l1_table = place_l1();
  header.l1_entries = l1_entries_;

  const std::uint64_t table_clusters = refcount_table_clusters();
  if (table_clusters * geometry_.cluster_size() > kMaxRefcountTableBytes) {
    throw Error(
        Outcome::Usage,
        fmt::format("{} clusters need a refcount table above QEMU's limit of {} bytes; use larger clusters",
                    next_, kMaxRefcountTableBytes),
        Remedy::LargerClusters);
  }
  FinishedTable table{allocate(table_clusters), PageBuffer(table_clusters * geometry_.cluster_size())};
  place_last_blocks();
  for (std::size_t i = 0; i < refcount_blocks_.size(); ++i) {
    encode_struct(Be64(refcount_blocks_[i].bytes()), table.bytes.data() + i * kWord);
  }
  header.refcount_table = table.at;
  header.refcount_table_clusters = table_clusters;
  header.refcount_order = kRefcountOrder;
  finished_.push_back(std::move(table));
}

}  // namespace qchain
