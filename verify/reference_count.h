// Reference counts of host clusters, in bounded memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace qchain {

/// What a host cluster is used for.
enum class Structure : std::uint8_t {
  Header,
  L1Table,
  SnapshotL1Table,
  L2Table,
  Data,
  Compressed,
  RefcountTable,
  RefcountBlock,
  SnapshotTable,
  BitmapDirectory,
  BitmapTable,
  BitmapBits,
  LuksHeader,
};
inline constexpr unsigned kStructures = 13;
const char* to_string(Structure structure) noexcept;

/// The COPIED bit of the entry that a reference comes from.
enum class CopiedBit : std::uint8_t {
  Meaningless,  ///< The entry is not in the active tables.
  Clear,
  Set,
};

/// The uses of one host cluster: 13 bits for its kinds, two for the COPIED bits seen, and a saturating count.
class ClusterUse {
 public:
  static constexpr std::uint32_t kMaxCount = (std::uint32_t{1} << 17) - 1;

  std::uint32_t count() const { return bits_ >> kCountShift; }
  bool count_is_exact() const { return count() != kMaxCount; }
  bool used_as(Structure structure) const { return (bits_ >> static_cast<unsigned>(structure) & 1) != 0; }
  /// Used as data and by compressed streams, and by nothing else.
  bool is_data_and_streams() const;
  bool copied_set() const { return (bits_ & kSet) != 0; }
  bool copied_clear() const { return (bits_ & kClear) != 0; }
  /// Whether the uses are in conflict: data clusters, compressed clusters and L2 tables may be shared with
  /// their like; everything else has one owner.
  bool is_overlap() const;
  /// The names of its uses.
  std::string users() const;

  void add(Structure structure, std::uint32_t references, CopiedBit copied);

 private:
  static constexpr std::uint32_t kSet = std::uint32_t{1} << kStructures;
  static constexpr std::uint32_t kClear = kSet << 1;
  static constexpr unsigned kCountShift = kStructures + 2;

  std::uint32_t bits_ = 0;
};
static_assert(sizeof(ClusterUse) == 4);

/// Counters for a window of the file, allocated only where there are references. When they exceed the budget,
/// the window shrinks; the rest is left for the next window, which takes another walk over the tables. So any
/// sparse file can be handled.
class ReferenceCount {
 public:
  static constexpr std::uint64_t kChunkClusters = 1024;
  using Chunk = std::vector<ClusterUse>;  // kChunkClusters of them

  /// 24 MiB of counters.
  static constexpr std::size_t kMaxChunks = 6144;

  explicit ReferenceCount(std::size_t max_chunks = kMaxChunks) : max_chunks_(max_chunks) {}

  /// Adds `references` to each of the clusters [first, last] in the window.
  void add(std::uint64_t first, std::uint64_t last, Structure structure, std::uint32_t references,
           CopiedBit copied);

  /// The window: clusters [begin, end).
  std::uint64_t begin() const { return begin_; }
  std::uint64_t end() const { return end_; }
  /// Starts the next window, with all counts 0; false if this one was the last.
  bool advance();

  /// The counters of the clusters from index * kChunkClusters; nullptr: there are no references.
  const Chunk* chunk(std::uint64_t index) const;
  const std::map<std::uint64_t, Chunk>& chunks() const { return chunks_; }

 private:
  Chunk* chunk_to_count(std::uint64_t index);

  static constexpr std::uint64_t kNoEnd = ~std::uint64_t{0};

  std::size_t max_chunks_;
  std::uint64_t begin_ = 0;
  std::uint64_t end_ = kNoEnd;
  std::map<std::uint64_t, Chunk> chunks_;
  // The chunk used last; most references are close to the previous one.
  std::uint64_t recent_index_ = kNoEnd;
  Chunk* recent_ = nullptr;
};

}  // namespace qchain
