// Several threads on one disk: run under TSan, with the same result as one thread.
#include <gtest/gtest.h>

#include "extent/raw_copy.h"
#include "qcow2/chain.h"
#include "qcow2/layer_writer.h"
#include "tests/random.h"
#include "tests/support.h"
#include "verify/compare.h"
#include "verify/device_digest.h"

namespace qchain::tests {
namespace {

class ThreadsTest : public RandomTest {
 protected:
  static constexpr std::uint64_t kSize = 24 << 20;
  static constexpr unsigned kWorkers = 6;

  Folder folder;
};

TEST_F(ThreadsTest, EveryJobIsTheSameForAnyNumberOfThreads) {
  for (const char* const compression : {"none", "zstd:1"}) {
    Disk disk = random_disk(random, kSize, 100000, Position::Overlay);
    for (std::size_t at = 0; at < kSize; at += 3) disk.bytes[at] = std::byte{0};
    MemoryDevice device(disk.bytes, disk.extents, 300000);

    // Write a layer.
    LayerOptions layer;
    layer.position = Position::Overlay;
    layer.cluster_bits = 14;
    layer.compression = parse_compression(compression);
    write_image(device, folder / "one", layer);
    layer.workers = kWorkers;
    write_image(device, folder / "many", layer);
    ASSERT_EQ(first_difference(read_file(folder / "one"), read_file(folder / "many")), "");

    // Read it.
    const auto chain = Chain::open(folder / "many", ImageFormat::Qcow2, {});
    DigestOptions digest;
    const Digest by_one = digest_of(*chain, kSize, digest);
    digest.workers = kWorkers;
    EXPECT_EQ(digest_of(*chain, kSize, digest), by_one);

    // Compare it.
    Bytes changed = content_of(*chain);
    for (int i = 0; i < 50; ++i) changed[random.below(kSize)] ^= std::byte{1};
    MemoryDevice live(changed, {{guest_range(0, kSize), Kind::Data}}, 1 << 20);
    CompareOptions compare_options;
    const Comparison one = compare(*chain, live, compare_options);
    compare_options.workers = kWorkers;
    const Comparison many = compare(*chain, live, compare_options);
    EXPECT_GT(one.different_bytes, 0U);
    EXPECT_EQ(many.different_bytes, one.different_bytes);
    EXPECT_EQ(many.chain, by_one);
    EXPECT_EQ(many.live, one.live);
    ASSERT_EQ(many.different.size(), one.different.size());
    for (std::size_t i = 0; i < one.different.size(); ++i) {
      EXPECT_EQ(many.different[i].range, one.different[i].range);
      EXPECT_EQ(many.different[i].source, one.different[i].source);
    }

    // Restore it.
    for (const unsigned workers : {1U, kWorkers}) {
      File raw = create_file(folder / "raw" + std::to_string(workers));
      raw.bypass_cache();
      CopyOptions copy;
      copy.workers = workers;
      copy_raw(*chain, guest_range(0, kSize), raw, TargetContent::Zeros, copy);
    }
    EXPECT_EQ(
        first_difference(read_file(folder / "raw1"), read_file(folder / "raw" + std::to_string(kWorkers))),
        "");
  }
}

}  // namespace
}  // namespace qchain::tests
