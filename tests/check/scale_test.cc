// Images that do not fit in what memory is set aside for: more host clusters than one window of
// counters, more L2 tables than one list.

#include <gtest/gtest.h>

#include "qcow2/format.h"
#include "tests/check/images.h"
#include "verify/reference_count.h"

namespace qchain::tests {
namespace {

constexpr std::uint64_t kCluster = 512;
constexpr std::uint64_t kCopied = std::uint64_t{1} << 63;

// Builds an image of 512-byte clusters and 1-bit refcounts in a sparse file:
//
//     header | L1 table | refcount table | refcount blocks | L2 tables | ... data
class Builder {
 public:
  static constexpr std::uint64_t kPerTable = kCluster / 8;
  static constexpr std::uint64_t kPerBlock = kCluster * 8;

  // Of `clusters` host clusters.
  Builder(const std::string& path, std::uint64_t tables, std::uint64_t clusters)
      : file_(create_file(path)),
        refcount_table_(1 + divide_up(tables * 8, kCluster)),
        table_clusters_(divide_up(divide_up(clusters, kPerBlock) * 8, kCluster)),
        blocks_(refcount_table_ + table_clusters_),
        l2_(blocks_ + divide_up(clusters, kPerBlock)) {
    HeaderV3 header;
    header.v2.magic = kMagic;
    header.v2.version = 3;
    header.v2.cluster_bits = 9;
    header.v2.virtual_size = tables * kPerTable * kCluster;
    header.v2.l1_entries = static_cast<std::uint32_t>(tables);
    header.v2.l1_offset = kCluster;
    header.v2.refcount_table_offset = refcount_table_ * kCluster;
    header.v2.refcount_table_clusters = static_cast<std::uint32_t>(table_clusters_);
    header.refcount_order = 0;
    header.header_length = sizeof(header);
    Bytes raw(sizeof(header));
    encode_struct(header, raw.data());
    file_.write(HostOffset(0), raw);
    Bytes l1(tables * 8);
    for (std::uint64_t i = 0; i < tables; ++i) {
      encode_struct(Be64((l2_ + i) * kCluster | kCopied), l1.data() + i * 8);
    }
    file_.write(HostOffset(kCluster), l1);
    for (std::uint64_t i = 0; i < l2_ - blocks_; ++i) {
      put(refcount_table_ * kCluster + i * 8, (blocks_ + i) * kCluster);
    }
    Bytes bits((l2_ + tables + 7) / 8);
    for (std::uint64_t i = 0; i < l2_ + tables; ++i) {
      bits[i / 8] |= static_cast<std::byte>(1U << (i % 8));
    }
    file_.write(HostOffset(refcount_at(0)), bits);
    file_.resize(clusters * kCluster);
  }

  // The byte with the refcount of a cluster in its least significant bit, and those of seven
  // neighbours.
  std::uint64_t refcount_at(std::uint64_t cluster) const {
    return (blocks_ + cluster / kPerBlock) * kCluster + cluster % kPerBlock / 8;
  }
  void map(std::uint64_t index, std::uint64_t cluster) {
    put(l2_ * kCluster + index * 8, cluster * kCluster | kCopied);
    put_refcounts(cluster, 1);
  }
  void put_refcounts(std::uint64_t cluster, unsigned bits) {
    file_.write(HostOffset(refcount_at(cluster)), Bytes(1, static_cast<std::byte>(bits)));
  }

 private:
  void put(std::uint64_t offset, std::uint64_t value) {
    Bytes raw(8);
    encode_struct(Be64(value), raw.data());
    file_.write(HostOffset(offset), raw);
  }

  File file_;
  std::uint64_t refcount_table_;  // these four in clusters
  std::uint64_t table_clusters_;
  std::uint64_t blocks_;
  std::uint64_t l2_;
};

TEST(ScaleTest, MoreClustersThanOneWindow) {
  // Each data cluster has a chunk of counters to itself.
  constexpr std::uint64_t kData = 7000;
  static_assert(kData > ReferenceCount::kMaxChunks);
  const auto data = [](std::uint64_t i) { return (i + 2) * ReferenceCount::kChunkClusters; };
  const Folder folder;
  const std::string path = folder / "sparse.qcow2";
  Builder image(path, divide_up(kData, Builder::kPerTable), data(kData - 1) + 1);
  for (std::uint64_t i = 0; i < kData; ++i) image.map(i, data(i));
  EXPECT_EQ(check_by_qemu(path), QemuVerdict::Clean);
  CheckReport report = check_by_us(path);
  EXPECT_EQ(report.outcome(true), Outcome::Done) << words_of(report);

  // Damage in the last window: a leak beside the last data cluster but one, and a refcount that is
  // gone.
  image.put_refcounts(data(kData - 2), 3);
  image.put_refcounts(data(kData - 1), 0);
  report = check_by_us(path);
  EXPECT_EQ(count(report, Flaw::RefcountHigh), 1U) << words_of(report);
  EXPECT_EQ(count(report, Flaw::RefcountLow), 1U) << words_of(report);
}

TEST(ScaleTest, MoreTablesThanOneList) {
  constexpr std::uint64_t kTables = 70000;
  const Folder folder;
  const std::string path = folder / "tables.qcow2";
  constexpr std::uint64_t kClusters = 80000;
  Builder image(path, kTables, kClusters);
  image.map(3, kClusters - 8);
  image.map(kTables * Builder::kPerTable - 1, kClusters - 16);
  EXPECT_EQ(check_by_qemu(path), QemuVerdict::Clean);
  CheckReport report = check_by_us(path);
  EXPECT_EQ(report.outcome(true), Outcome::Done) << words_of(report);

  image.put_refcounts(kClusters - 16, 0);
  report = check_by_us(path);
  ASSERT_EQ(count(report, Flaw::RefcountLow), 1U) << words_of(report);
  EXPECT_EQ(report.layers[0].findings.kept()[0].guest,
            guest_range((kTables * Builder::kPerTable - 1) * kCluster, kCluster));
}

}  // namespace
}  // namespace qchain::tests
