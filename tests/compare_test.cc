// A chain against a live disk: exactly what differs is reported, with the layer that holds it.
#include "verify/compare.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <set>

#include "tests/random.h"
#include "tests/support.h"
#include "verify/device_digest.h"

namespace qchain::tests {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;

class CompareTest : public RandomTest {
 protected:
  // A chain of one to three layers that we wrote, of `size` bytes.
  std::unique_ptr<Chain> build_chain(std::uint64_t size) {
    std::string below;
    for (std::uint64_t i = 0, depth = random.between(1, 3); i < depth; ++i) {
      LayerOptions options;
      options.position = i == 0 ? Position::Bottom : Position::Overlay;
      options.cluster_bits = random.bits(12, 17);
      if (random.chance(30)) options.compression = parse_compression("zlib:1");
      Disk disk =
          random_disk(random, size, random.one_of<std::uint64_t>({4096, 65536, 200704}), options.position);
      // Half of it compresses.
      for (std::size_t at = 0; at < disk.bytes.size(); at += 2) disk.bytes[at] &= std::byte{1};
      MemoryDevice device(disk.bytes, disk.extents, size);
      const std::string name = "layer" + std::to_string(i);
      write_image(device, folder / name, options, below);
      below = name;
    }
    return Chain::open(folder / below, ImageFormat::Qcow2, {});
  }

  // A live disk with these bytes, which says Zero wherever it is and Data elsewhere, or less.
  static MemoryDevice live_disk(const Bytes& bytes, bool knows_its_zeros) {
    Extents extents;
    for (std::uint64_t at = 0; at < bytes.size(); at += 4096) {
      const std::uint64_t length = std::min<std::uint64_t>(4096, bytes.size() - at);
      const bool zero =
          knows_its_zeros && std::ranges::all_of(std::span(bytes).subspan(at, length),
                                                 [](std::byte byte) { return byte == std::byte{0}; });
      append(extents, {guest_range(at, length), zero ? Kind::Zero : Kind::Data});
    }
    return {bytes, extents, 1 << 30};
  }

  CompareOptions any_options() {
    CompareOptions options;
    options.workers = random.bits(1, 4);
    return options;
  }

  static std::set<std::uint64_t> sectors_of(const Comparison& comparison) {
    std::set<std::uint64_t> sectors;
    for (const Discrepancy& difference : comparison.different) {
      EXPECT_EQ(difference.range.begin.bytes() % kSectorSize, 0U);
      for (std::uint64_t at = difference.range.begin.bytes(); at < difference.range.end.bytes();
           at += kSectorSize) {
        EXPECT_TRUE(sectors.insert(at / kSectorSize).second) << "twice";
      }
    }
    return sectors;
  }

  Folder folder;
};

TEST_F(CompareTest, ExactlyTheSectorsThatDifferAreNamed) {
  for (int round = 0; round < 12; ++round) {
    const std::uint64_t size = kSectorSize * random.between(1, 3 * kMiB / kSectorSize);
    const auto chain = build_chain(size);
    const Bytes content = content_of(*chain);
    Bytes changed = content;
    std::set<std::uint64_t> expected;
    for (std::uint64_t i = round == 0 ? 0 : random.below(40); i > 0; --i) {
      const std::uint64_t at = random.below(size);
      const std::uint64_t length = std::min(size - at, random.one_of<std::uint64_t>({1, 1, 700, 70000}));
      for (std::byte& byte : std::span(changed).subspan(at, length)) {
        byte = random.chance(50) ? std::byte{0} : static_cast<std::byte>(random.word());
      }
    }
    for (std::uint64_t at = 0; at < size; ++at) {
      if (content[at] != changed[at]) expected.insert(at / kSectorSize);
    }
    MemoryDevice live = live_disk(changed, random.chance(50));
    std::uint64_t done = 0;
    CompareOptions options = any_options();
    options.progress = [&](std::uint64_t bytes) { done = bytes; };
    const Comparison comparison = compare(*chain, live, options);

    EXPECT_EQ(done, size);
    EXPECT_EQ(comparison.compared_bytes, size);
    EXPECT_LE(comparison.read_bytes, size);
    EXPECT_EQ(comparison.different_bytes, expected.size() * kSectorSize);
    EXPECT_EQ(sectors_of(comparison), expected);
    EXPECT_TRUE(std::ranges::none_of(comparison.different,
                                     [](const Discrepancy& d) { return d.cause == Cause::Moving; }));
    EXPECT_EQ(comparison.live, digest_of(live, size, {}));
    EXPECT_EQ(comparison.chain, digest_of(*chain, size, {}));
    for (const Discrepancy& difference : comparison.different) {
      SCOPED_TRACE(to_string(difference.range));
      EXPECT_NE(difference.live, difference.found);
      EXPECT_TRUE(difference.live.starts_with("sha256:"));
      // The layer that holds them, and where: computed by hand.
      const BlockSource& source = difference.source;
      const auto at = content.begin() + static_cast<std::ptrdiff_t>(difference.range.begin.bytes());
      const Bytes sector(at, at + static_cast<std::ptrdiff_t>(kSectorSize));
      ASSERT_LT(source.layer, chain->layers().size());
      Bytes held(kSectorSize);
      if (source.host_offset && !source.is_compressed) {
        chain->layers()[source.layer].file().read(HostOffset(*source.host_offset), held);
      } else if (source.is_compressed) {
        const Image& image = *chain->layers()[source.layer].image();
        Bytes cluster(image.geometry().cluster_size());
        image.read_compressed(chain->map(difference.range).front(), cluster);
        const auto within =
            cluster.begin() +
            static_cast<std::ptrdiff_t>(image.geometry().offset_in_cluster(difference.range.begin.bytes()));
        std::copy(within, within + static_cast<std::ptrdiff_t>(kSectorSize), held.begin());
      } else {
        EXPECT_NE(source.kind, Kind::Data);
      }
      EXPECT_EQ(held, sector);
      // One layer supplied all of it.
      for (GuestRange rest = difference.range; !rest.empty();) {
        for (const Mapping& mapping : chain->map(rest)) {
          EXPECT_EQ(mapping.layer, source.layer);
          EXPECT_EQ(mapping.kind, source.kind);
          EXPECT_EQ(mapping.storage == Storage::Compressed, source.is_compressed);
          rest.begin = mapping.range.end;
        }
      }
    }
  }
}

// Every byte of the longer side: what the shorter one lacks is different, zeros or not.
TEST_F(CompareTest, WhatOneSideLacksIsDifferent) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t size = kSectorSize * random.between(1, kMiB / kSectorSize);
    const auto chain = build_chain(size);
    Bytes bytes = content_of(*chain);
    const std::uint64_t live_size = kSectorSize * random.between(1, 2 * kMiB / kSectorSize);
    if (live_size == size) continue;
    const bool zeros = random.chance(50);
    bytes.resize(live_size);
    if (!zeros && live_size > size) random.fill(std::span(bytes).subspan(size));
    SCOPED_TRACE(testing::Message() << "chain " << size << ", live " << live_size
                                    << (zeros ? ", zeros" : ", data"));
    MemoryDevice live = live_disk(bytes, random.chance(50));
    const Comparison comparison = compare(*chain, live, any_options());
    const std::uint64_t longer = std::max(size, live_size);
    const std::uint64_t shorter = std::min(size, live_size);
    EXPECT_EQ(comparison.compared_bytes, longer);
    EXPECT_EQ(comparison.different_bytes, longer - shorter);
    const std::set<std::uint64_t> sectors = sectors_of(comparison);
    ASSERT_FALSE(sectors.empty());
    EXPECT_EQ(*sectors.begin(), shorter / kSectorSize);
    EXPECT_EQ(*sectors.rbegin(), longer / kSectorSize - 1);
    EXPECT_NE(comparison.live, comparison.chain);
  }
}

// The list is capped, the counts are not.
TEST_F(CompareTest, ManyDifferencesAreCounted) {
  constexpr std::uint64_t kSize = 2 * kMiB;
  Bytes bytes(kSize, std::byte{1});
  MemoryDevice device(bytes, {{guest_range(0, kSize), Kind::Data}}, kSize);
  write_image(device, folder / "layer", {});
  const auto chain = Chain::open(folder / "layer", ImageFormat::Qcow2, {});
  for (std::uint64_t at = 0; at < kSize; at += 1024) bytes[at] = std::byte{2};
  MemoryDevice live = live_disk(bytes, false);
  const Comparison comparison = compare(*chain, live, any_options());
  EXPECT_EQ(comparison.different_bytes, kSize / 2);
  EXPECT_GE(comparison.different.size(), 100U);
  EXPECT_LT(comparison.different.size(), kSize / 1024);
}

// A live side that reads differently a second time is reported as moving, not as different.
TEST_F(CompareTest, AMovingLiveSideIsDistinguishedFromADifference) {
  class Moving : public MemoryDevice {
   public:
    using MemoryDevice::MemoryDevice;
    std::unique_ptr<Reader> open_reader() override {
      class Ticking : public Reader {
       public:
        explicit Ticking(std::atomic<unsigned char>& tick) : tick_(tick) {}
        void read(std::span<const ReadRequest> batch) override {
          for (const ReadRequest& request : batch) {
            // The first 64 KiB stand still.
            const bool still = request.begin < GuestOffset(65536) && request.into.size() <= 65536;
            const std::byte value{still ? static_cast<unsigned char>(255) : ++tick_};
            std::ranges::fill(request.into, value);
          }
        }

       private:
        std::atomic<unsigned char>& tick_;
      };
      return std::make_unique<Ticking>(tick_);
    }

   private:
    std::atomic<unsigned char> tick_{0};
  };
  for (const std::uint64_t size : {std::uint64_t{65536}, 16 * kMiB}) {
    MemoryDevice device(Bytes(size), {{guest_range(0, size), Kind::Zero}}, size);
    write_image(device, folder / "layer", {});
    const auto chain = Chain::open(folder / "layer", ImageFormat::Qcow2, {});
    Moving live(Bytes(size), {{guest_range(0, size), Kind::Data}}, size);
    CompareOptions options;
    const Comparison comparison = compare(*chain, live, options);
    const bool moving = size > 65536;
    EXPECT_EQ(std::ranges::any_of(comparison.different,
                                  [](const Discrepancy& d) { return d.cause == Cause::Moving; }),
              moving);
    EXPECT_EQ(comparison.different_bytes, size);
    EXPECT_EQ(comparison.different.back().cause, moving ? Cause::Moving : Cause::Unknown);
  }
}

// The chain is as long as the disk was before it was rounded up to sectors, where that is recorded.
TEST_F(CompareTest, ARecordedLengthIsCompared) {
  constexpr std::uint64_t kSize = 100001;
  Bytes bytes(kSize);
  random.fill(bytes);
  std::fill(bytes.end() - 90, bytes.end(), std::byte{0});
  MemoryDevice device(bytes, {{guest_range(0, kSize), Kind::Data}}, kSize);
  {
    const File file = create_file(folder / "layer");
    Header header = write_layer(device, file, {}).header;
    Identity identity;
    identity.id = random_uuid();
    identity.length = kSize;
    header.identity = encode_identity(identity);
    write_header(file, header);
  }
  const auto chain = Chain::open(folder / "layer", ImageFormat::Qcow2, {});
  ASSERT_EQ(chain->top().true_length(), kSize);
  const Comparison comparison = compare(*chain, device, any_options());
  EXPECT_EQ(comparison.different_bytes, 0U);
  EXPECT_EQ(comparison.live, comparison.chain);
  EXPECT_EQ(comparison.chain, digest_of(device, kSize, {}));

  // A server that rounds the size has the same disk: zeros in the same last sector.
  for (const std::uint64_t length : {kSize - 90, kSize - 1, kSize + 1, align_up(kSize, kSectorSize)}) {
    Bytes rounded = bytes;
    rounded.resize(length);
    MemoryDevice live = live_disk(rounded, random.chance(50));
    const Comparison same = compare(*chain, live, any_options());
    EXPECT_EQ(same.different_bytes, 0U) << length;
    EXPECT_EQ(same.live, same.chain) << length;
    EXPECT_EQ(same.chain, comparison.chain) << length;
  }
  for (const std::uint64_t length : {align_down(kSize, kSectorSize), align_up(kSize, kSectorSize) + 1}) {
    Bytes other = bytes;
    other.resize(length);
    MemoryDevice live = live_disk(other, false);
    const Comparison different = compare(*chain, live, any_options());
    EXPECT_EQ(different.different_bytes, kSectorSize) << length;
    EXPECT_NE(different.live, different.chain) << length;
  }
  // A byte after the recorded end is not zero.
  Bytes longer = bytes;
  longer.resize(kSize + 1, std::byte{1});
  MemoryDevice live = live_disk(longer, false);
  EXPECT_EQ(compare(*chain, live, any_options()).different_bytes, kSectorSize);
}

}  // namespace
}  // namespace qchain::tests
