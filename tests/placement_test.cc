// Placement alone, without a file: independent counts of everything that the tables refer to.
#include "qcow2/placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "qcow2/format.h"
#include "tests/random.h"
#include "tests/support.h"

namespace qchain::tests {
namespace {

// What a placement made: its tables by host offset, and the end of the file.
class Layout {
 public:
  explicit Layout(const Geometry& geometry) : geometry_(geometry) {}

  void add(std::vector<FinishedTable> tables) {
    for (FinishedTable& table : tables) {
      for (std::uint64_t at = 0; at < table.bytes.size(); at += cluster_size()) {
        const bool fresh =
            clusters_
                .emplace(table.at.bytes() + at,
                         Bytes(table.bytes.begin() + static_cast<std::ptrdiff_t>(at),
                               table.bytes.begin() + static_cast<std::ptrdiff_t>(at + cluster_size())))
                .second;
        if (!fresh) ADD_FAILURE() << "two tables at " << table.at.bytes() + at;
      }
    }
  }

  // Counts every reference that begins at the header, and holds the refcounts to it. Returns what is wrong
  // first; empty where nothing is.
  std::string recount(const Header& header, std::uint64_t file_bytes) {
    references_.assign(file_bytes / cluster_size(), 0);
    tables_in_use_ = 0;
    streams_.clear();
    wrong_.clear();
    refer(0, 1, false);
    refer(header.l1_table.bytes(), divide_up(header.l1_entries * 8, cluster_size()), true);
    for (std::uint64_t i = 0; i < header.l1_entries; ++i) {
      const L1Entry l1 = decode_l1(word(header.l1_table.bytes(), i));
      if (l1.table == HostOffset(0)) continue;
      if (!l1.copied || l1.reserved != 0) report("L1 entry", i);
      refer(l1.table.bytes(), 1, true);
      for (std::uint64_t j = 0; j < geometry_.l2_entries(); ++j) refer_entry(l1.table.bytes(), j);
    }
    refer(header.refcount_table.bytes(), header.refcount_table_clusters, true);
    std::vector<std::uint64_t> blocks;
    for (std::uint64_t i = 0; i < header.refcount_table_clusters * cluster_size() / 8; ++i) {
      blocks.push_back(word(header.refcount_table.bytes(), i));
      if (blocks.back() != 0) refer(blocks.back(), 1, true);
    }
    hold_refcounts_to_references(blocks);
    // A table that nothing refers to is a leak, though its cluster may look free.
    if (tables_in_use_ != clusters_.size()) report("tables in use", tables_in_use_);
    return wrong_;
  }

  std::uint64_t stored_refcount(std::uint64_t cluster, const std::vector<std::uint64_t>& blocks) {
    const std::uint64_t per_block = cluster_size() / 2;
    const std::uint64_t block = cluster / per_block < blocks.size() ? blocks[cluster / per_block] : 0;
    if (block == 0) return 0;
    return decode_struct<Be16>(at(block).data() + cluster % per_block * 2);
  }

 private:
  std::uint64_t cluster_size() const { return geometry_.cluster_size(); }

  void report(const std::string& what, std::uint64_t where) {
    if (wrong_.empty()) wrong_ = what + " " + std::to_string(where);
  }

  const Bytes& at(std::uint64_t offset) {
    static const Bytes kNothing(std::size_t{2} << 20);
    const auto found = clusters_.find(offset);
    if (found != clusters_.end()) return found->second;
    report("no table was written at", offset);
    return kNothing;
  }

  std::uint64_t word(std::uint64_t table, std::uint64_t index) {
    const std::uint64_t offset = index * 8;
    const Bytes& cluster = at(table + align_down(offset, cluster_size()));
    return decode_struct<Be64>(cluster.data() + offset % cluster_size());
  }

  void refer(std::uint64_t offset, std::uint64_t clusters, bool table) {
    if (offset % cluster_size() != 0) report("not cluster-aligned:", offset);
    for (std::uint64_t i = 0; i < clusters; ++i) {
      const std::uint64_t cluster = offset / cluster_size() + i;
      if (cluster >= references_.size()) return report("past the end of the file:", offset);
      if (references_[cluster]++ != 0) report("a second reference to cluster", cluster);
      const bool written = clusters_.contains(cluster * cluster_size());
      if (written != table) report(table ? "not written: " : "a table over data:", cluster);
      if (table) ++tables_in_use_;
    }
  }

  void refer_entry(std::uint64_t table, std::uint64_t index) {
    const bool extended = geometry_.extended_l2();
    const std::uint64_t raw = word(table, extended ? 2 * index : index);
    const std::uint64_t bitmap = extended ? word(table, 2 * index + 1) : 0;
    const L2Entry entry = decode_l2(raw, bitmap, geometry_, 3, false);
    if (!format_violation(entry, geometry_).empty()) report("L2 entry", index);
    switch (entry.storage) {
      case Storage::None:
        break;
      case Storage::Plain:
        if (!entry.copied) report("without COPIED:", index);
        refer(entry.host.bytes(), 1, false);
        break;
      case Storage::Compressed: {
        if (entry.copied) report("COPIED on a compressed cluster:", index);
        const std::uint64_t last = entry.host.bytes() + entry.compressed_bytes - 1;
        for (std::uint64_t c = entry.host.bytes() / cluster_size(); c <= last / cluster_size(); ++c) {
          if (c >= references_.size()) return report("past the end of the file: stream", index);
          // Streams share clusters with streams alone.
          if (references_[c] != 0 && !streams_.contains(c)) report("a stream over cluster", c);
          if (clusters_.contains(c * cluster_size())) report("a stream over the table", c);
          streams_.insert(c);
          ++references_[c];
        }
      }
    }
  }

  void hold_refcounts_to_references(const std::vector<std::uint64_t>& blocks) {
    const std::uint64_t covered = blocks.size() * cluster_size() / 2;
    for (std::uint64_t c = 0; c < std::max<std::uint64_t>(references_.size(), 1); ++c) {
      if (references_[c] == 0) report("a leak of cluster", c);
      if (references_[c] > 0xFFFF || stored_refcount(c, blocks) != references_[c]) {
        report("the refcount of cluster", c);
      }
    }
    // Refcounts past the end of the file are 0: the rest of the last blocks.
    for (std::uint64_t c = references_.size(); c < std::min(covered, references_.size() + cluster_size());
         ++c) {
      if (stored_refcount(c, blocks) != 0) report("a refcount past the end for cluster", c);
    }
  }

  const Geometry geometry_;
  std::map<std::uint64_t, Bytes> clusters_;
  std::set<std::uint64_t> streams_;  // the clusters that they touch
  std::vector<std::uint64_t> references_;
  std::uint64_t tables_in_use_ = 0;
  std::string wrong_;
};

// Ends copies of `placement` and of what it wrote so far, which both go on afterwards.
std::string recount_if_it_ended_here(const Placement& placement, const Layout& layout) {
  Placement ended = placement;
  Layout all = layout;
  Header header;
  ended.finish(header);
  all.add(ended.take_finished());
  return all.recount(header, ended.file_bytes());
}

class PlacementTest : public RandomTest {};

// The smallest clusters have the most borders: a block counts 256 clusters, 64 entries fill a cluster of the
// refcount table. After every single cluster the file could end. The L1 table has various lengths, so that
// each kind of allocation meets each border.
TEST_F(PlacementTest, EveryNumberOfClustersAroundTheFirstBlocksIsSound) {
  for (const std::uint64_t l1_clusters : {1, 2, 5, 100}) {
    const std::uint64_t coverage = 64 * 512;
    const Geometry geometry(9, false, l1_clusters * 64 * coverage);
    Placement placement(geometry);
    Layout layout(geometry);
    ASSERT_EQ(recount_if_it_ended_here(placement, layout), "") << "nothing placed";
    for (std::uint64_t i = 0; i < 540; ++i) {
      placement.place_data(i, 1, 0);
      layout.add(placement.take_finished());
      if (i > 100 && i < 150) continue;  // no border near
      ASSERT_EQ(recount_if_it_ended_here(placement, layout), "")
          << i + 1 << " clusters, L1 of " << l1_clusters;
    }
  }
}

TEST_F(PlacementTest, EveryNumberOfClustersAroundASecondTableClusterIsSound) {
  const Geometry geometry(9, false, 512 * 20000);
  Placement placement(geometry);
  Layout layout(geometry);
  unsigned checked = 0;
  std::uint64_t clusters_of_table[3] = {};
  for (std::uint64_t i = 0; placement.file_bytes() < 512 * (64 * 256 + 5); ++i) {
    placement.place_data(i, 1, 0);
    layout.add(placement.take_finished());
    if (placement.file_bytes() < 512 * (64 * 256 - 25)) continue;
    ++checked;
    ASSERT_EQ(recount_if_it_ended_here(placement, layout), "") << i + 1 << " clusters";
    Placement ended = placement;
    Header header;
    ended.finish(header);
    ASSERT_LE(header.refcount_table_clusters, 2U);
    ++clusters_of_table[header.refcount_table_clusters];
  }
  EXPECT_GT(checked, 20U);
  EXPECT_GT(clusters_of_table[1], 0U) << "the border was in the window";
  EXPECT_GT(clusters_of_table[2], 0U);
}

TEST_F(PlacementTest, EveryNumberOfClustersAroundABlockOf4KiBIsSound) {
  const Geometry geometry(12, false, std::uint64_t{1} << 30);
  Placement placement(geometry);
  Layout layout(geometry);
  for (std::uint64_t i = 0; i < 4120; ++i) {
    placement.place_data(i, 1, 0);
    layout.add(placement.take_finished());
    const std::uint64_t cluster = placement.file_bytes() / 4096 % 2048;
    if (cluster > 6 && cluster < 2040) continue;
    ASSERT_EQ(recount_if_it_ended_here(placement, layout), "") << i + 1 << " clusters";
  }
}

// Any sequence of calls: data, zeros and streams with gaps, standard and extended.
TEST_F(PlacementTest, AnySequenceIsSoundAndSaysWhatWasAskedFor) {
  for (int round = 0; round < 60; ++round) {
    const bool extended = random.chance(40);
    const unsigned bits = extended ? random.bits(14, 16) : random.bits(9, 13);
    const std::uint64_t clusters = random.between(1, extended ? 2500 : 3000);
    const Geometry geometry(bits, extended, clusters << bits);
    SCOPED_TRACE("cluster bits " + std::to_string(bits) + ", clusters " + std::to_string(clusters));
    Placement placement(geometry);
    Layout layout(geometry);
    std::uint64_t stream_end = 0;
    const unsigned gaps = random.one_of<unsigned>({2, 60});
    const unsigned streams = random.one_of<unsigned>({0, 50, 98});
    const std::uint64_t longest =
        random.one_of<std::uint64_t>({2, geometry.cluster_size() / 8, geometry.cluster_size() - 1});
    for (std::uint64_t i = 0; i < clusters; ++i) {
      if (random.chance(gaps)) continue;
      const auto zero = static_cast<std::uint32_t>(random.word()) & geometry.all_units();
      const std::uint32_t data = extended ? static_cast<std::uint32_t>(random.word()) & ~zero : 1;
      if (random.chance(streams)) {
        const std::uint64_t length = random.between(1, longest);
        const HostOffset at = placement.place_compressed(i, length);
        ASSERT_GE(at.bytes(), stream_end) << "streams do not overlap";
        stream_end = at.bytes() + length;
        ASSERT_LE(stream_end, placement.file_bytes());
      } else if (data == 0 || random.chance(20)) {
        placement.place_zero(i, zero);
      } else {
        placement.place_data(i, data, extended ? zero : 0);
      }
      if (random.chance(10)) layout.add(placement.take_finished());
    }
    ASSERT_EQ(recount_if_it_ended_here(placement, layout), "");
  }
}

// A refcount has 16 bits; a host cluster of 2 MiB has room for more streams than that.
TEST_F(PlacementTest, StreamsStopSharingAtTheRefcountsMaximum) {
  constexpr std::uint64_t kStreams = 140000;
  const Geometry geometry(21, false, kStreams << 21);
  Placement placement(geometry);
  Layout layout(geometry);
  for (std::uint64_t i = 0; i < kStreams; ++i) placement.place_compressed(i, 20);
  EXPECT_EQ(recount_if_it_ended_here(placement, layout), "");
}

// Tables leave memory once the cursor has passed them.
TEST_F(PlacementTest, TablesAreFinishedOnTheWay) {
  const Geometry geometry(12, false, std::uint64_t{1} << 30);
  Placement placement(geometry);
  for (std::uint64_t l1 = 0; l1 < 20; ++l1) {
    placement.place_data(l1 * geometry.l2_entries(), 1, 0);
    EXPECT_EQ(placement.take_finished().size(), l1 == 0 ? 0U : 1U);
  }
}

TEST_F(PlacementTest, AnL1TableAboveTheLimitIsRefused) {
  const auto outcome = [](unsigned bits, bool extended, std::uint64_t size) {
    return outcome_of([&] { Placement(Geometry(bits, extended, size)); });
  };
  constexpr std::uint64_t kTiB = std::uint64_t{1} << 40;
  EXPECT_EQ(outcome(12, false, 8 * kTiB), Outcome::Done);
  EXPECT_EQ(outcome(12, false, 8 * kTiB + 1), Outcome::Usage);
  EXPECT_EQ(outcome(12, false, 16 * kTiB), Outcome::Usage);
  EXPECT_EQ(outcome(16, false, 16 * kTiB), Outcome::Done);
  EXPECT_EQ(outcome(21, true, ~std::uint64_t{511}), Outcome::Usage);
}

}  // namespace
}  // namespace qchain::tests
