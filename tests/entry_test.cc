// L1 and L2 entries: encode and decode are inverse, and decode accepts every bit pattern.
#include "qcow2/entry.h"

#include <gtest/gtest.h>

#include "tests/random.h"

namespace qchain::tests {
namespace {

constexpr std::uint64_t kCompressedFlag = std::uint64_t{1} << 62;
constexpr std::uint64_t kDiskSize = std::uint64_t{1} << 40;

class EntryTest : public RandomTest {
 protected:
  Geometry any_geometry(bool extended) {
    return {random.bits(extended ? 14 : kMinClusterBits, kMaxClusterBits), extended, kDiskSize};
  }
  HostOffset any_cluster(const Geometry& geometry) {
    return HostOffset(align_down(random.any_size(56), geometry.cluster_size()));
  }

  // A valid entry of any kind.
  L2Entry any_entry(const Geometry& geometry) {
    constexpr std::uint32_t kAll = 0xFFFFFFFF;
    L2Entry entry;
    switch (random.below(3)) {
      case 0:
        break;
      case 1: {
        entry.storage = Storage::Compressed;
        const unsigned offset_bits = std::min(56U, 70 - geometry.cluster_bits());
        entry.host = HostOffset(random.any_size(offset_bits));
        // The descriptor counts sectors: what it can say ends at the end of one.
        const std::uint64_t sectors = random.between(1, geometry.cluster_size() / 256);
        entry.compressed_bytes = sectors * 512 - entry.host.bytes() % 512;
        entry.allocated = kAll;
        return entry;
      }
      case 2:
        entry.host = any_cluster(geometry);
        if (entry.host != HostOffset(0)) entry.storage = Storage::Plain;
        entry.copied = random.chance(50);
        break;
    }
    const bool plain = entry.storage == Storage::Plain;
    if (geometry.extended_l2()) {
      entry.zero = static_cast<std::uint32_t>(random.word());
      if (plain) entry.allocated = static_cast<std::uint32_t>(random.word()) & ~entry.zero;
    } else if (random.chance(50)) {
      entry.zero = kAll;
    } else if (plain) {
      entry.allocated = kAll;
    }
    return entry;
  }
};

TEST_F(EntryTest, L2SurvivesTheDisk) {
  for (int round = 0; round < 20000; ++round) {
    const Geometry geometry = any_geometry(random.chance(50));
    const L2Entry entry = any_entry(geometry);
    const RawL2Entry raw = encode_l2(entry, geometry);
    ASSERT_EQ(decode_l2(raw.entry, raw.bitmap, geometry, 3, false), entry)
        << std::hex << raw.entry << ' ' << raw.bitmap << std::dec << ", cluster bits "
        << geometry.cluster_bits();
    ASSERT_EQ(format_violation(entry, geometry), "");
  }
}

TEST_F(EntryTest, EveryStandardL2WordIsDecodedWithoutLoss) {
  for (int round = 0; round < 20000; ++round) {
    const Geometry geometry = any_geometry(false);
    const std::uint64_t raw = random.word() & random.one_of<std::uint64_t>({~0ULL, random.word()});
    const unsigned version = random.bits(2, 3);
    const bool data_file = random.chance(20);
    const L2Entry entry = decode_l2(raw, 0, geometry, version, data_file);
    ASSERT_EQ(encode_l2(entry, geometry).entry, raw) << std::hex << raw;
  }
}

TEST_F(EntryTest, EveryExtendedL2EntryMeansSomething) {
  for (int round = 0; round < 20000; ++round) {
    const Geometry geometry = any_geometry(true);
    const std::uint64_t raw = random.word();
    const std::uint64_t bitmap = random.word() & random.word();
    const L2Entry entry = decode_l2(raw, bitmap, geometry, 3, random.chance(20));
    const std::string violation = format_violation(entry, geometry);
    if ((raw & kCompressedFlag) != 0) {
      ASSERT_EQ(entry.storage, Storage::Compressed);
      // A compressed cluster has no subclusters.
      if (bitmap != 0) {
        ASSERT_NE(violation, "");
      }
      continue;
    }
    // Bit 0 of word 1 is ignored here; other reserved bits are violations.
    const bool reserved = (raw & 0x3F000000000001FE) != 0;
    const bool both = (static_cast<std::uint32_t>(bitmap) & bitmap >> 32) != 0;
    if (reserved || both) {
      ASSERT_NE(violation, "");
    }
    for (unsigned i = 0; i < kSubclustersPerCluster; ++i) {
      const bool zero = (bitmap >> (32 + i) & 1) != 0;
      const bool allocated = (bitmap >> i & 1) != 0;
      ASSERT_EQ(entry.kind(i), zero ? Kind::Zero : allocated ? Kind::Data : Kind::Inherit);
    }
  }
}

// The vectors of QEMU images.
TEST_F(EntryTest, CompressedDescriptorsOfQemu) {
  const L2Entry a = decode_l2(0x4040000000050000, 0, Geometry(16, false, kDiskSize), 3, false);
  EXPECT_EQ(a.storage, Storage::Compressed);
  EXPECT_EQ(a.host, HostOffset(0x50000));
  EXPECT_EQ(a.compressed_bytes, (1 + 1) * 512U);
  EXPECT_FALSE(a.copied);
  EXPECT_EQ(a.kind(0), Kind::Data);
  const L2Entry b = decode_l2(0x4008000000a00802, 0, Geometry(21, false, kDiskSize), 3, false);
  EXPECT_EQ(b.storage, Storage::Compressed);
  EXPECT_EQ(b.host, HostOffset(0xa00802));
  EXPECT_EQ(b.compressed_bytes, (4 + 1) * 512U - 2);
}

// A writer knows the exact length; the descriptor keeps the number of sectors that the stream touches.
TEST_F(EntryTest, ACompressedStreamMatchesItsDescriptor) {
  for (int round = 0; round < 5000; ++round) {
    const Geometry geometry = any_geometry(random.chance(50));
    L2Entry entry;
    entry.storage = Storage::Compressed;
    entry.host = HostOffset(random.below(std::uint64_t{1} << std::min(48U, 70 - geometry.cluster_bits())));
    entry.compressed_bytes = random.between(1, geometry.cluster_size() - 1);
    const RawL2Entry raw = encode_l2(entry, geometry);
    const L2Entry read = decode_l2(raw.entry, raw.bitmap, geometry, 3, false);
    ASSERT_EQ(read.host, entry.host);
    ASSERT_GE(read.compressed_bytes, entry.compressed_bytes);
    ASSERT_LT(read.compressed_bytes, entry.compressed_bytes + 512);
    ASSERT_EQ((read.host + read.compressed_bytes).bytes() % 512, 0U);
  }
}

TEST_F(EntryTest, StandardEntriesTakePrecedenceAsInQemu) {
  const Geometry geometry(16, false, kDiskSize);
  const auto decode = [&](std::uint64_t raw, unsigned version = 3, bool data_file = false) {
    return decode_l2(raw, 0, geometry, version, data_file);
  };
  EXPECT_EQ(decode(0).kind(0), Kind::Inherit);
  EXPECT_EQ(decode(kCopied | 0x50000).kind(0), Kind::Data);
  EXPECT_EQ(decode(1).kind(0), Kind::Zero);
  EXPECT_EQ(decode(kCopied | 0x50001).kind(0), Kind::Zero) << "the offset is a preallocation";
  EXPECT_EQ(decode(kCopied | 0x50001).storage, Storage::Plain);
  EXPECT_EQ(decode(kCompressedFlag | 0x50001).kind(0), Kind::Data) << "compressed comes first";
  // Version 2 has no zero flag.
  EXPECT_EQ(decode(0x50001, 2).kind(0), Kind::Data);
  EXPECT_NE(format_violation(decode(0x50001, 2), geometry), "");
  // Offset 0 is a cluster of an external data file.
  EXPECT_EQ(decode(kCopied).kind(0), Kind::Inherit);
  EXPECT_EQ(decode(kCopied, 3, true).kind(0), Kind::Data);
}

TEST_F(EntryTest, ReservedBitsAndOddOffsetsAreReported) {
  const Geometry geometry(16, false, kDiskSize);
  for (unsigned bit = 0; bit < 64; ++bit) {
    const std::uint64_t flag = std::uint64_t{1} << bit;
    const bool reserved = (flag & 0x3F000000000001FE) != 0;
    const bool inside_cluster = bit >= 9 && bit < 16;
    const L2Entry entry = decode_l2(0x50000 ^ flag, 0, geometry, 3, false);
    EXPECT_EQ(format_violation(entry, geometry) != "", reserved || inside_cluster) << bit;
  }
}

// The offset has more bits than a host offset may have where clusters are small.
TEST_F(EntryTest, CompressedOffsetsFrom56BitsOnAreReported) {
  for (unsigned cluster_bits = kMinClusterBits; cluster_bits <= kMaxClusterBits; ++cluster_bits) {
    const Geometry geometry(cluster_bits, false, kDiskSize);
    for (unsigned bit = 0; bit < 70 - cluster_bits; ++bit) {
      const L2Entry entry = decode_l2(kCompressedFlag | std::uint64_t{1} << bit, 0, geometry, 3, false);
      ASSERT_EQ(format_violation(entry, geometry) != "", bit >= 56) << cluster_bits << ' ' << bit;
    }
  }
}

TEST_F(EntryTest, EveryL1WordIsDecodedWithoutLoss) {
  for (int round = 0; round < 10000; ++round) {
    const std::uint64_t raw = random.word();
    const L1Entry entry = decode_l1(raw);
    ASSERT_EQ(encode_l1(entry), raw);
    ASSERT_EQ(entry.table, HostOffset(raw & 0x00FFFFFFFFFFFE00));
    ASSERT_EQ(entry.copied, raw >> 63 != 0);
    ASSERT_EQ(entry.reserved, raw & 0x7F000000000001FF);
  }
}

}  // namespace
}  // namespace qchain::tests
