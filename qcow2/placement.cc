#include "qcow2/placement.h"

#include <fmt/format.h>

#include <cassert>
#include <utility>

#include "extent/error.h"
#include "qcow2/format.h"

namespace qchain {

namespace {

constexpr unsigned kRefcountOrder = 4;
constexpr std::uint64_t kRefcountBytes = 2;
constexpr std::uint64_t kWord = sizeof(std::uint64_t);
constexpr std::uint32_t kAllSubclusters = 0xFFFFFFFF;

}  // namespace

Placement::Placement(const Geometry& geometry)
    : geometry_(geometry), refcounts_per_block_(geometry.cluster_size() / kRefcountBytes) {
  const std::uint64_t entries = geometry.l1_entries();
  if (entries > kMaxL1Bytes / kWord) {
    throw Error(Outcome::Usage,
                fmt::format("{} bytes of disk at clusters of {} bytes need an L1 table of {} bytes, above "
                            "QEMU's limit of {}; use a larger --cluster-size",
                            geometry.virtual_size(), geometry.cluster_size(), entries * kWord,
                            kMaxL1Bytes));
  }
  l1_.resize(entries);
  allocate(1);  // the header
}

HostOffset Placement::allocate(std::uint64_t clusters) {
  const std::uint64_t first = next_;
  for (std::uint64_t i = 0; i < clusters; ++i) count(next_++);
  place_full_blocks();
  return host(first);
}

void Placement::count(std::uint64_t cluster) {
  std::vector<std::byte>& block = open_blocks_[cluster / refcounts_per_block_];
  block.resize(geometry_.cluster_size());
  encode_struct(Be16(1), block.data() + cluster % refcounts_per_block_ * kRefcountBytes);
}

// A block is full when the cursor has passed its last cluster. Its own cluster is counted too, and may
// be the one that fills the next block.
void Placement::place_full_blocks() {
  while (!open_blocks_.empty() &&
         next_ / refcounts_per_block_ > open_blocks_.begin()->first) {
    std::vector<std::byte> block = std::move(open_blocks_.begin()->second);
    open_blocks_.erase(open_blocks_.begin());
    const std::uint64_t cluster = next_++;
    count(cluster);
    refcount_blocks_.push_back(host(cluster));
    finished_.push_back({host(cluster), std::move(block)});
  }
}

// At the end the blocks have to count themselves: each gets its cluster first, and is written when none
// is without.
void Placement::place_last_blocks() {
  while (refcount_blocks_.size() <= open_blocks_.rbegin()->first) {
    const std::uint64_t cluster = next_++;
    count(cluster);
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
  l1_[l1_index_] = encode_l1({at, true, 0});
  finished_.push_back({at, std::move(l2_)});
  l1_index_ = kNone;
}

void Placement::set_entry(std::uint64_t index, const L2Entry& entry) {
  enter_l2(index / geometry_.l2_entries());
  std::byte* const at = l2_.data() + index % geometry_.l2_entries() * geometry_.l2_entry_bytes();
  const RawL2Entry raw = encode_l2(entry, geometry_);
  encode_struct(Be64(raw.entry), at);
  if (geometry_.extended_l2()) encode_struct(Be64(raw.bitmap), at + kWord);
}

HostOffset Placement::place_data(std::uint64_t index) {
  enter_l2(index / geometry_.l2_entries());  // so that a finished table goes before the cluster
  L2Entry entry;
  entry.storage = Storage::Plain;
  entry.host = allocate(1);
  entry.copied = true;
  entry.allocated = kAllSubclusters;
  set_entry(index, entry);
  return entry.host;
}

void Placement::place_zero(std::uint64_t first, std::uint64_t count) {
  L2Entry entry;
  entry.zero = kAllSubclusters;
  for (std::uint64_t i = 0; i < count; ++i) set_entry(first + i, entry);
}

std::vector<FinishedTable> Placement::take_finished() { return std::exchange(finished_, {}); }

// How many clusters the refcount table needs, counting itself and the blocks that are not placed yet.
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

namespace {

std::vector<std::byte> table_bytes(std::uint64_t clusters, const Geometry& geometry) {
  return std::vector<std::byte>(clusters * geometry.cluster_size());
}

}  // namespace

void Placement::finish(Header& header) {
  close_l2();
  const std::uint64_t l1_clusters =
      divide_up(std::max<std::uint64_t>(1, l1_.size()) * kWord, geometry_.cluster_size());
  FinishedTable l1{allocate(l1_clusters), table_bytes(l1_clusters, geometry_)};
  for (std::size_t i = 0; i < l1_.size(); ++i) {
    encode_struct(Be64(l1_[i]), l1.bytes.data() + i * kWord);
  }
  finished_.push_back(std::move(l1));
  header.l1_table = finished_.back().at;
  header.l1_entries = l1_.size();

  const std::uint64_t table_clusters = refcount_table_clusters();
  if (table_clusters * geometry_.cluster_size() > kMaxRefcountTableBytes) {
    throw Error(Outcome::Usage,
                fmt::format("{} clusters need a refcount table above QEMU's limit of {} bytes; use a "
                            "larger --cluster-size",
                            next_, kMaxRefcountTableBytes));
  }
  FinishedTable table{allocate(table_clusters), table_bytes(table_clusters, geometry_)};
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
