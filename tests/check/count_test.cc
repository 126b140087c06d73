// Counting, without images: windows compared with a map, refcounts compared with bits, merging of findings.

#include <gtest/gtest.h>

#include <map>

#include "qcow2/refcount.h"
#include "tests/random.h"
#include "tests/support.h"
#include "verify/finding.h"
#include "verify/reference_count.h"

namespace qchain::tests {
namespace {

class CountTest : public RandomTest {};

TEST_F(CountTest, WindowsSeeEveryReferenceOnce) {
  for (int round = 0; round < 50; ++round) {
    struct Use {
      std::uint64_t first;
      std::uint64_t last;
      std::uint32_t references;
    };
    std::vector<Use> uses;
    std::map<std::uint64_t, std::uint64_t> model;
    for (int i = 0; i < 100; ++i) {
      const std::uint64_t first = random.any_size(24);
      uses.push_back({first, first + random.any_size(11), random.bits(1, 3)});
      for (std::uint64_t c = first; c <= uses.back().last; ++c) model[c] += uses.back().references;
    }
    ReferenceCount count(random.between(1, 20));
    std::map<std::uint64_t, std::uint64_t> counted;
    std::uint64_t end = 0;
    do {
      EXPECT_EQ(count.begin(), end);
      for (const Use& use : uses) {
        count.add(use.first, use.last, Structure::Data, use.references, CopiedBit::Set);
      }
      end = count.end();
      for (const auto& [index, chunk] : count.chunks()) {
        for (std::uint64_t i = 0; i < chunk.size(); ++i) {
          const std::uint64_t cluster = index * ReferenceCount::kChunkClusters + i;
          if (chunk[i].count() == 0) continue;
          EXPECT_TRUE(cluster >= count.begin() && cluster < count.end());
          EXPECT_TRUE(counted.emplace(cluster, chunk[i].count()).second);
        }
      }
    } while (count.advance());
    ASSERT_EQ(counted, model);
  }
}

TEST_F(CountTest, UsesThatMayBeShared) {
  const auto use = [](std::initializer_list<Structure> structures) {
    ClusterUse all;
    for (const Structure structure : structures) all.add(structure, 1, CopiedBit::Meaningless);
    return all;
  };
  EXPECT_FALSE(use({Structure::Data, Structure::Data}).is_overlap());
  EXPECT_FALSE(use({Structure::Compressed, Structure::Compressed}).is_overlap());
  EXPECT_FALSE(use({Structure::L2Table, Structure::L2Table}).is_overlap());
  EXPECT_FALSE(use({Structure::Header}).is_overlap());
  EXPECT_TRUE(use({Structure::Data, Structure::Compressed}).is_overlap());
  EXPECT_TRUE(use({Structure::L1Table, Structure::L1Table}).is_overlap());
  EXPECT_TRUE(use({Structure::LuksHeader, Structure::Data}).is_overlap());
  EXPECT_EQ(use({Structure::Data, Structure::Header}).users(), "header and data");

  ClusterUse many = use({Structure::Compressed});
  for (int i = 0; i < 3; ++i) many.add(Structure::Compressed, ~std::uint32_t{0}, CopiedBit::Clear);
  EXPECT_FALSE(many.count_is_exact());
  EXPECT_TRUE(many.copied_clear());
  EXPECT_FALSE(many.copied_set());
}

TEST_F(CountTest, RefcountsOfEveryWidth) {
  for (unsigned order = 0; order <= 6; ++order) {
    const unsigned bits = 1U << order;
    Bytes block(512);
    random.fill(block);
    for (std::uint64_t i = 0; i < refcounts_per_block(block.size(), order); ++i) {
      std::uint64_t expected = 0;
      if (bits < 8) {
        for (unsigned b = 0; b < bits; ++b) {
          const std::uint64_t at = i * bits + b;
          expected |= (std::to_integer<std::uint64_t>(block[at / 8]) >> (at % 8) & 1) << b;
        }
      } else {
        for (unsigned b = 0; b < bits / 8; ++b) {
          expected = expected << 8 | std::to_integer<std::uint64_t>(block[i * bits / 8 + b]);
        }
      }
      ASSERT_EQ(decode_refcount(block, i, order), expected) << order << ", " << i;
    }
  }
}

TEST_F(CountTest, FindingsAreMergedAndCapped) {
  FindingList list;
  const auto leak = [](std::uint64_t cluster, const char* what) {
    Finding finding;
    finding.flaw = Flaw::RefcountHigh;
    finding.severity = Severity::Leak;
    finding.at = HostOffset(cluster * 2);
    finding.what = what;
    finding.host = {HostOffset(cluster * 512), HostOffset((cluster + 1) * 512)};
    return finding;
  };
  for (std::uint64_t i = 100; i < 10100; ++i) list.add(leak(i, "leaked"));
  list.add(leak(10100, "leaked twice"));
  list.add(leak(10102, "leaked twice"));
  ASSERT_EQ(list.kept().size(), 3U);
  EXPECT_EQ(list.kept()[0].count, 10000U);
  EXPECT_EQ(list.kept()[0].host.length(), 10000U * 512);
  for (std::uint64_t i = 0; i < 1000; ++i) list.add(leak(20000 + 2 * i, "leaked"));
  EXPECT_EQ(list.kept().size(), FindingList::kKeptPerFlaw);
  EXPECT_EQ(list.count(Flaw::RefcountHigh), 11002U);
  EXPECT_EQ(list.count(Severity::Leak), 11002U);
  EXPECT_EQ(list.dropped(), 1003U - FindingList::kKeptPerFlaw);
  EXPECT_EQ(list.host_bytes(Flaw::RefcountHigh), 11002U * 512);
}

}  // namespace
}  // namespace qchain::tests
