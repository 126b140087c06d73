#include "verify/recount.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "extent/cancellation.h"
#include "extent/zero.h"
#include "qcow2/format.h"
#include "qcow2/refcount.h"

namespace qchain {

namespace {

constexpr std::uint64_t kWord = sizeof(std::uint64_t);
constexpr std::uint64_t kUnusable = ~std::uint64_t{0};  // not a valid offset

// Whether the uses of a cluster are valid, regardless of its refcount.
bool is_sound(ClusterUse use) {
  if (use.is_overlap()) return false;
  return use.count() == 1 ? !use.copied_clear() : !use.copied_set();
}

}  // namespace

Recount::Recount(const Image& image, FindingList& findings)
    : image_(image),
      findings_(findings),
      order_(image.header().refcount_order),
      per_block_(refcounts_per_block(image.geometry().cluster_size(), order_)),
      file_clusters_(divide_up(image.file_size(), image.geometry().cluster_size())),
      dirty_(image.header().has_incompatible(kIncompatibleDirty)) {
  const std::uint64_t held = read_table();
  for (std::uint64_t i = 0; i < std::min<std::uint64_t>(held, blocks_.size()); ++i) {
    if (blocks_[i] != 0) check_table_entry(i, blocks_[i]);
  }
  set_aside_duplicates();
}

// 8 MiB at most. Entries past the end of the file are unknown, not 0. Returns the number of entries.
std::uint64_t Recount::read_table() {
  const Header& header = image_.header();
  const std::uint64_t bytes = header.refcount_table_clusters * image_.geometry().cluster_size();
  blocks_.resize(bytes / kWord);
  const std::span<std::byte> raw = std::as_writable_bytes(std::span(blocks_));
  const std::size_t held = image_.file().read_at_most(header.refcount_table, raw) / kWord;
  std::fill(blocks_.begin() + static_cast<std::ptrdiff_t>(held), blocks_.end(), kUnusable);
  for (std::size_t i = 0; i < held; ++i) {
    blocks_[i] = decode_struct<Be64>(raw.data() + i * kWord);
  }
  while (!blocks_.empty() && blocks_.back() == 0) blocks_.pop_back();
  return held;
}

HostOffset Recount::entry_at(std::uint64_t index) const {
  return image_.header().refcount_table + index * kWord;
}

void Recount::check_table_entry(std::uint64_t index, std::uint64_t raw) {
  const auto bad = [&](Flaw flaw, const char* why) {
    findings_.add({flaw,
                   Severity::DataLoss,
                   entry_at(index),
                   fmt::format("refcount table entry: {}", why),
                   raw,
                   {},
                   {}});
  };
  if ((raw & kRefcountTableReserved) != 0) {
    bad(Flaw::ReservedBits, "reserved bits are set");
    blocks_[index] = kUnusable;
  } else if (image_.geometry().offset_in_cluster(raw) != 0) {
    bad(Flaw::Misaligned, "its refcount block is not cluster-aligned");
    blocks_[index] = kUnusable;
  } else if (raw >= image_.file_size()) {
    bad(Flaw::PastEnd, "its refcount block is past the end of the file");
    blocks_[index] = kUnusable;
  } else if (image_.geometry().cluster_size() > image_.file_size() - raw) {
    bad(Flaw::Truncated, "the file ends inside its refcount block");
  }
}

// A block that is referenced twice is valid for neither range. It also must not be read many times for an
// image that references it many times.
void Recount::set_aside_duplicates() {
  std::vector<std::uint64_t> sorted;
  for (const std::uint64_t block : blocks_) {
    if (block != 0 && block != kUnusable) sorted.push_back(block);
  }
  std::ranges::sort(sorted);
  std::vector<std::uint64_t> twice;
  for (std::size_t i = 1; i < sorted.size(); ++i) {
    if (sorted[i] == sorted[i - 1]) twice.push_back(sorted[i]);
  }
  if (twice.empty()) return;
  for (std::uint64_t i = 0; i < blocks_.size(); ++i) {
    if (!std::ranges::binary_search(twice, blocks_[i])) continue;
    findings_.add({Flaw::BadRefcountBlock,
                   Severity::DataLoss,
                   entry_at(i),
                   "refcount table entry: its refcount block is referenced more than once",
                   blocks_[i],
                   {},
                   {}});
    blocks_[i] = kUnusable;
  }
}

void Recount::refer(const ReferenceSink& sink) const {
  for (std::uint64_t i = 0; i < blocks_.size(); ++i) {
    if (blocks_[i] == 0 || blocks_[i] == kUnusable) continue;
    sink({Structure::RefcountBlock,
          HostOffset(blocks_[i]),
          image_.geometry().cluster_size(),
          1,
          CopiedBit::Meaningless,
          entry_at(i),
          {}});
  }
}

void Recount::compare(const ReferenceCount& counted) {
  for (std::uint64_t i = counted.begin() / per_block_; i < blocks_.size(); ++i) {
    const std::uint64_t begin = std::max(i * per_block_, counted.begin());
    const std::uint64_t end = std::min((i + 1) * per_block_, counted.end());
    if (begin >= end) break;
    if (blocks_[i] != 0 && blocks_[i] != kUnusable) compare_block(i, begin, end, counted);
  }
  compare_uncovered(counted);
  for (const auto& [index, chunk] : counted.chunks()) {
    used_clusters_ += static_cast<std::uint64_t>(
        std::ranges::count_if(chunk, [](ClusterUse use) { return use.count() != 0; }));
  }
}

// Compares clusters [begin, end), whose refcounts are in block `index`.
void Recount::compare_block(std::uint64_t index, std::uint64_t begin, std::uint64_t end,
                            const ReferenceCount& counted) {
  throw_if_cancelled();
  buffer_.resize(image_.geometry().cluster_size());
  const HostOffset block(blocks_[index]);
  const std::size_t held = image_.file().read_at_most(block, buffer_);
  std::fill(buffer_.begin() + static_cast<std::ptrdiff_t>(held), buffer_.end(), std::byte{0});
  for (std::uint64_t first = begin; first < end;) {
    const std::uint64_t next =
        align_down(first, ReferenceCount::kChunkClusters) + ReferenceCount::kChunkClusters;
    const std::uint64_t count = std::min(next, end) - first;
    const std::uint64_t position = refcount_position(first - index * per_block_, order_);
    // The slice is byte-aligned: chunks and blocks are multiples of eight refcounts, or the whole block.
    const std::uint64_t bytes = divide_up(count << order_, 8);
    compare_slice(first, count, std::span(buffer_).subspan(position, bytes), block + position, counted);
    first += count;
  }
}

void Recount::compare_slice(std::uint64_t first, std::uint64_t count, std::span<const std::byte> refcounts,
                            HostOffset refcounts_at, const ReferenceCount& counted) {
  const ReferenceCount::Chunk* const chunk = counted.chunk(first / ReferenceCount::kChunkClusters);
  if (chunk == nullptr && is_zero(refcounts)) return;
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t cluster = first + i;
    const ClusterUse use =
        chunk != nullptr ? (*chunk)[cluster % ReferenceCount::kChunkClusters] : ClusterUse();
    const std::uint64_t refcount = decode_refcount(refcounts, i, order_);
    if (refcount == use.count() && cluster < file_clusters_ && is_sound(use)) continue;
    compare(cluster, refcount, use, refcounts_at + refcount_position(i, order_));
  }
}

// Clusters with references but without a refcount block; without a block, refcounts are 0.
void Recount::compare_uncovered(const ReferenceCount& counted) {
  for (const auto& [index, chunk] : counted.chunks()) {
    for (std::uint64_t i = 0; i < chunk.size(); ++i) {
      if (chunk[i].count() == 0) continue;
      const std::uint64_t cluster = index * ReferenceCount::kChunkClusters + i;
      const std::uint64_t block = cluster / per_block_;
      const std::uint64_t known = block < blocks_.size() ? blocks_[block] : 0;
      // Unusable refcount blocks were reported; the uses of the clusters can still be checked.
      if (known == 0) compare(cluster, 0, chunk[i], entry_at(block));
      if (known == kUnusable) compare(cluster, chunk[i].count(), chunk[i], entry_at(block));
    }
  }
}

void Recount::find(Flaw flaw, Severity severity, std::uint64_t cluster, HostOffset at, std::string what) {
  const std::uint64_t size = image_.geometry().cluster_size();
  const HostOffset begin(cluster * size);
  findings_.add({flaw, severity, at, std::move(what), std::nullopt, {begin, begin + size}, {}});
}

void Recount::compare(std::uint64_t cluster, std::uint64_t refcount, ClusterUse use, HostOffset at) {
  const std::uint64_t references = use.count();
  const auto counts = [&] {
    return fmt::format("refcount {}, {}{} references{}{}", refcount, use.count_is_exact() ? "" : "at least ",
                       references, references != 0 ? ": " : "", use.users());
  };
  if (cluster >= file_clusters_ && references == 0) {
    if (refcount == 0) return;
    find(dirty_ ? Flaw::RefcountStale : Flaw::RefcountPastEnd, Severity::Leak, cluster, at,
         fmt::format("refcount {} for a cluster past the end of the file", refcount));
    return;
  }
  const bool may_be_shared = use.is_data_and_streams() && use.count_is_exact() && refcount == references &&
                             !use.copied_set() && shared_.size() < kMaxShared;
  if (may_be_shared) {
    shared_.emplace(cluster, use.count());
  } else if (use.is_overlap()) {
    find(Flaw::Overlap, Severity::DataLoss, cluster, at,
         fmt::format("used {} times: {}", references, use.users()));
  }
  const bool enough = refcount >= references;
  if (enough ? refcount != references && use.count_is_exact() : true) {
    if (dirty_) {
      find(Flaw::RefcountStale, Severity::Leak, cluster, at, counts());
    } else if (enough) {
      find(Flaw::RefcountHigh, Severity::Leak, cluster, at, counts());
    } else {
      find(Flaw::RefcountLow, Severity::DataLoss, cluster, at, counts());
    }
  }
  if (use.copied_set() && references > 1) {
    find(Flaw::CopiedSet, Severity::DataLoss, cluster, at,
         fmt::format("COPIED is set on a cluster with {} references", references));
  } else if (use.copied_set() && refcount != 1 && !dirty_) {
    find(Flaw::CopiedSet, Severity::Harmless, cluster, at,
         fmt::format("COPIED is set on a cluster with refcount {}", refcount));
  } else if (use.copied_clear() && references == 1 && (refcount == 1 || dirty_)) {
    find(Flaw::CopiedMissing, Severity::Harmless, cluster, at,
         "COPIED is not set on a cluster with one reference");
  }
}

}  // namespace qchain
