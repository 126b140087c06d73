// QEMU is the oracle: an image that it wrote is clean for us exactly if it is clean for qemu-img check, and
// an image that it reports as corrupt is corrupt for us.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>

#include "tests/check/images.h"

namespace qchain::tests {
namespace {

class OracleTest : public RandomTest {
 protected:
  // Flips a bit, checks with both, and restores the image.
  void compare_after_flip(DamagedImage& image, std::uint64_t offset, unsigned bit, const char* what) {
    image.flip(offset, bit);
    const QemuVerdict qemu = check_by_qemu(image.path());
    const CheckReport report = check_by_us(image.path());
    const QemuVerdict ours = verdict_of(report);
    ++seen_[fmt::format("{}: QEMU {}, we {}", what, to_string(qemu), to_string(ours))];
    if (is_missed(qemu, report)) {
      ADD_FAILURE() << what << ", bit " << bit << " of the word at " << offset << " in " << image.path()
                    << ": QEMU says " << to_string(qemu) << ", we say " << to_string(ours) << "\n"
                    << words_of(report) << run({"qemu-img", "check", "-f", "qcow2", image.path()}).output;
    }
    image.restore();
  }

  void show_seen() const {
    for (const auto& [what, times] : seen_) std::printf("%5d  %s\n", times, what.c_str());
  }

  Folder folder_;
  std::map<std::string, int> seen_;
};

TEST_F(OracleTest, WhatQemuWroteIsCleanExactlyWhenQemuSaysSo) {
  for (int i = 0; i < rounds(32); ++i) {
    const Shape shape = random_shape(random);
    const std::string path = folder_ / fmt::format("{}.qcow2", i);
    make_random_image(random, shape, path);
    const QemuVerdict qemu = check_by_qemu(path);
    const CheckReport report = check_by_us(path, Payloads::All);
    const bool clean = verdict_of(report) == QemuVerdict::Clean || is_damage_that_qemu_misses(report);
    EXPECT_EQ(qemu == QemuVerdict::Clean, clean)
        << shape.options() << ", " << shape.size << " bytes: QEMU says " << to_string(qemu) << "\n"
        << words_of(report);
    ++seen_[fmt::format("QEMU {}, we {}", to_string(qemu), to_string(verdict_of(report)))];
    std::filesystem::remove(path);
  }
  show_seen();
}

// A small image with a bit of everything that is clean for both.
std::string clean_image(Random& random, const std::string& path) {
  for (;;) {
    Shape shape = random_shape(random);
    shape.cluster_bits = std::min(shape.cluster_bits, 16U);
    shape.extended_l2 = shape.extended_l2 && shape.cluster_bits >= 14;
    shape.lazy = false;
    shape.size = std::min<std::uint64_t>(shape.size, 4 << 20);
    make_random_image(random, shape, path);
    run({"qemu-img", "snapshot", "-c", "last", path});
    run({"qemu-img", "bitmap", "-f", "qcow2", "--add", "-g", "4096", path, "last"});
    run({"qemu-io", "-f", "qcow2", "-c", "write -P 77 0 70k", path});
    if (check_by_qemu(path) == QemuVerdict::Clean && verdict_of(check_by_us(path)) == QemuVerdict::Clean) {
      return shape.options();
    }
  }
}

TEST_F(OracleTest, WhatQemuCallsCorruptIsCorrupt) {
  for (int i = 0; i < rounds(5); ++i) {
    const std::string path = folder_ / fmt::format("{}.qcow2", i);
    SCOPED_TRACE(clean_image(random, path));
    DamagedImage image(path);
    const MetadataMap metadata(image);
    const auto some = [&](const std::vector<MetadataMap::Entry>& entries, int times, const char* what,
                          std::uint64_t behind = 0) {
      for (int k = 0; k < times && !entries.empty(); ++k) {
        const MetadataMap::Entry& entry = entries[random.below(entries.size())];
        compare_after_flip(image, entry.at + behind, random.bits(0, 63), what);
      }
    };
    const auto in = [&](std::uint64_t begin, std::uint64_t bytes, int times, const char* what) {
      for (int k = 0; k < times; ++k) {
        compare_after_flip(image, begin + random.below(bytes / 8) * 8, random.bits(0, 63), what);
      }
    };
    std::vector<MetadataMap::Entry> mapped;
    for (const MetadataMap::Entry& entry : metadata.l2) {
      if (entry.raw != 0) mapped.push_back(entry);
    }
    some(metadata.l1, 8, "L1 entry");
    some(mapped, 24, "L2 entry");
    some(metadata.l2, 4, "any L2 entry");
    if (metadata.extended_l2) some(mapped, 10, "subcluster bitmap", 8);
    some(metadata.refcount_blocks, 6, "refcount table entry");
    const std::uint64_t clusters = image.size() / metadata.cluster_size;
    const std::uint64_t refcounts = (clusters << metadata.refcount_order) / 8 + 8;
    in(metadata.refcount_blocks.front().raw, std::min(metadata.cluster_size, refcounts), 10,
       "refcount block");
    if (metadata.snapshot_table != 0) {
      in(metadata.snapshot_table, 80, 12, "snapshot table");
      in(image.word(metadata.snapshot_table), 8 * image.number(metadata.snapshot_table + 8, 4), 6,
         "snapshot's L1 table");
    }
    if (metadata.bitmap_directory != 0) {
      in(metadata.bitmap_directory, 32, 12, "bitmap directory");
      in(image.word(metadata.bitmap_directory), 8, 4, "bitmap table");
    }
    in(0, 112, 10, "header");
    in(112, 240, 6, "header extensions");
  }
  show_seen();
}

TEST_F(OracleTest, WhatWeWroteIsSound) {
  for (int i = 0; i < rounds(12); ++i) {
    LayerOptions options;
    options.cluster_bits = random.bits(kMinWrittenClusterBits, 17);
    options.extended_l2 = options.cluster_bits >= kMinExtendedL2ClusterBits && random.chance(50);
    if (random.chance(60)) {
      options.compression = parse_compression(random.chance(50) ? "zlib" : "zstd");
    }
    const Disk disk = random_disk(random, random.between(1, 4 << 20), 4096, Position::Bottom);
    MemoryDevice device(disk.bytes, disk.extents, 1 << 20);
    const std::string path = folder_ / fmt::format("{}.qcow2", i);
    write_image(device, path, options);
    const CheckReport report = check_by_us(path, Payloads::All);
    EXPECT_EQ(report.outcome(true), Outcome::Done) << words_of(report);
    EXPECT_EQ(check_by_qemu(path), QemuVerdict::Clean);
  }
}

TEST_F(OracleTest, GarbageIsCheckedAndNotTrusted) {
  for (int i = 0; i < 3; ++i) {
    const std::string path = folder_ / fmt::format("{}.qcow2", i);
    SCOPED_TRACE(clean_image(random, path));
    DamagedImage image(path);
    const MetadataMap metadata(image);
    std::vector<std::uint64_t> words;  // of all metadata
    const auto region = [&](std::uint64_t begin, std::uint64_t bytes) {
      for (std::uint64_t at = begin; at < begin + bytes; at += 8) words.push_back(at);
    };
    region(0, 512);
    region(metadata.l1_table, 64);
    region(metadata.refcount_table, 64);
    if (metadata.snapshot_table != 0) region(metadata.snapshot_table, 160);
    if (metadata.bitmap_directory != 0) region(metadata.bitmap_directory, 128);
    for (const MetadataMap::Entry& entry : metadata.l2) region(entry.at, metadata.extended_l2 ? 16 : 8);
    for (int k = 0; k < 400; ++k) {
      for (std::uint64_t n = random.between(1, 6); n > 0; --n) {
        // Plausible offsets as often as any bits.
        const std::uint64_t value =
            random.chance(50) ? random.any_size() : random.below(image.size()) & ~std::uint64_t{0x1FF};
        image.put(words[random.below(words.size())], value | random.below(2) << 63);
      }
      const CheckReport report = check_by_us(path, Payloads::All);
      for (const LayerCheck& layer : report.layers) {
        EXPECT_LE(layer.findings.kept().size(), kFlaws * FindingList::kKeptPerFlaw);
      }
      image.restore();
    }
  }
}

}  // namespace
}  // namespace qchain::tests
