// How often each host cluster is referenced, counted in a bounded amount of memory.
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

/// What the entry that a reference comes from says with its COPIED bit.
enum class CopiedBit : std::uint8_t {
  Meaningless,  ///< Not an entry of the active tables.
  Clear,
  Set,
};

/// What is known of one host cluster. 13 bits say what it is used for, two what COPIED bits said,
/// the rest is a count that stays at its maximum.
class ClusterUse {
 public:
  static constexpr std::uint32_t kMaxCount = (std::uint32_t{1} << 17) - 1;

  std::uint32_t count() const { return bits_ >> kCountShift; }
  bool count_is_exact() const { return count() != kMaxCount; }
  bool used_as(Structure structure) const { return (bits_ >> static_cast<unsigned>(structure) & 1) != 0; }
  /// Used as plain data and by compressed streams, and by nothing else.
  bool is_data_and_streams() const;
  bool copied_set() const { return (bits_ & kSet) != 0; }
  bool copied_clear() const { return (bits_ & kClear) != 0; }
  /// Whether the users get along: data may be shared, as may streams and L2 tables; all else is
  /// owned by one.
  bool is_overlap() const;
  /// Names of all that it is used for.
  std::string users() const;

  void add(Structure structure, std::uint32_t references, CopiedBit copied);

 private:
  static constexpr std::uint32_t kSet = std::uint32_t{1} << kStructures;
  static constexpr std::uint32_t kClear = kSet << 1;
  static constexpr unsigned kCountShift = kStructures + 2;

  std::uint32_t bits_ = 0;
};
static_assert(sizeof(ClusterUse) == 4);

/// Counters for a window of the file, made where there are references. When they exceed the budget,
/// the end of the window moves towards its beginning; what is past it is for the next window, which
/// takes one more walk over the tables. So a sparse file of any size fits.
class ReferenceCount {
 public:
  static constexpr std::uint64_t kChunkClusters = 1024;
  using Chunk = std::vector<ClusterUse>;  // kChunkClusters of them

  /// 24 MiB of counters.
  static constexpr std::size_t kMaxChunks = 6144;

  explicit ReferenceCount(std::size_t max_chunks = kMaxChunks) : max_chunks_(max_chunks) {}

  /// Counts `references` to each of the clusters [first, last], as far as they are in the window.
  void add(std::uint64_t first, std::uint64_t last, Structure structure, std::uint32_t references,
           CopiedBit copied);

  /// The window: clusters [begin, end).
  std::uint64_t begin() const { return begin_; }
  std::uint64_t end() const { return end_; }
  /// Begins the next window, with nothing counted; false where this one was the last.
  bool advance();

  /// The counters of the clusters from chunk * kChunkClusters on; nullptr: there are no references.
  const Chunk* chunk(std::uint64_t index) const;
  const std::map<std::uint64_t, Chunk>& chunks() const { return chunks_; }

 private:
  Chunk* chunk_to_count(std::uint64_t index);

  static constexpr std::uint64_t kNoEnd = ~std::uint64_t{0};

  std::size_t max_chunks_;
  std::uint64_t begin_ = 0;
  std::uint64_t end_ = kNoEnd;
  std::map<std::uint64_t, Chunk> chunks_;
  // The chunk that was asked for last; most references are near the last one.
  std::uint64_t recent_index_ = kNoEnd;
  Chunk* recent_ = nullptr;
};

}  // namespace qchain
