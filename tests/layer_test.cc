// extents(write(E)) == normalise(E), for any disk and any image that we write; and QEMU agrees.
#include <gtest/gtest.h>

#include <algorithm>

#include "extent/zero.h"
#include "qcow2/chain.h"
#include "qcow2/compression.h"
#include "qcow2/layer_writer.h"
#include "tests/random.h"
#include "tests/support.h"

namespace qchain::tests {
namespace {

class LayerTest : public RandomTest {
 protected:
  LayerOptions any_options() {
    LayerOptions options;
    options.position = random.one_of({Position::Bottom, Position::Overlay});
    options.extended_l2 = random.chance(30);
    options.cluster_bits = options.extended_l2 ? random.one_of<unsigned>({14, 15, 16, 16, 18, 21})
                                               : random.one_of<unsigned>({12, 12, 13, 14, 16, 16, 17, 21});
    if (random.chance(40)) {
      options.compression =
          parse_compression(random.one_of<std::string>({"zlib", "zstd", "zlib:1", "zstd:1"}));
    }
    options.workers = random.bits(1, 4);
    return options;
  }

  // The written image, according to its entries.
  static Extents extents_of_layer(const Image& image) {
    std::vector<Mapping> mappings;
    const GuestRange whole = guest_range(0, image.header().virtual_size);
    Mapper mapper(image);
    for (GuestRange rest = whole; !rest.empty();) rest.begin = mapper.map(rest, 100, mappings);
    Extents extents;
    for (const Mapping& mapping : mappings) append(extents, {mapping.range, mapping.kind});
    EXPECT_TRUE(is_merged(extents, whole));
    return extents;
  }

  // A parent of any size whose bytes are the disk's where the disk inherits, and anything elsewhere. What
  // inherits from behind the parent's end is zeros, which the disk is made to agree with.
  Bytes parent_of(Disk& disk) {
    const std::uint64_t size = disk.bytes.size();
    const std::uint64_t parent_size = random.one_of<std::uint64_t>(
        {size, align_up(size, 4096) + 8192, align_up(random.between(1, size), 512)});
    Bytes parent(parent_size);
    random.fill(parent);
    for (const Extent& extent : disk.extents) {
      if (extent.kind != Kind::Inherit) continue;
      for (std::uint64_t at = extent.range.begin.bytes(); at < extent.range.end.bytes(); ++at) {
        if (at < parent_size) {
          parent[at] = disk.bytes[at];
        } else {
          disk.bytes[at] = std::byte{0};
        }
      }
    }
    return parent;
  }

  // Data that can be compressed, but for some of it.
  void thin_out(Bytes& bytes) {
    for (std::size_t at = 0; at < bytes.size(); at += 4096) {
      if (random.chance(30)) continue;
      for (std::byte& byte : std::span(bytes).subspan(at, std::min<std::size_t>(4096, bytes.size() - at))) {
        byte &= std::byte{0x11};
      }
    }
  }

  Folder folder;
};

TEST_F(LayerTest, TheLaw) {
  for (int round = 0; round < rounds(24); ++round) {
    LayerOptions options = any_options();
    const Geometry geometry(options.cluster_bits, options.extended_l2, 0);
    const std::uint64_t clusters = options.cluster_bits > 17 ? 3 : 40;
    std::uint64_t size = random.between(1, clusters * geometry.cluster_size());
    if (random.chance(60)) size = align_up(size, random.one_of<std::uint64_t>({512, 4096, 65536}));
    const std::uint64_t grain = random.one_of<std::uint64_t>(
        {512, geometry.unit() / 2 + 512, geometry.unit(), 3 * geometry.unit(), 777});
    Disk disk = random_disk(random, size, std::max(grain, size / 200), options.position);
    if (options.compression) thin_out(disk.bytes);
    SCOPED_TRACE(testing::Message() << "round " << round << ", size " << size << ", cluster bits "
                                    << options.cluster_bits << (options.extended_l2 ? ", extended" : "")
                                    << (options.compression ? ", compressed" : "")
                                    << (options.position == Position::Overlay ? ", overlay" : ", bottom"));
    std::string backing;
    if (options.position == Position::Overlay) {
      backing = "parent.raw";
      write_file(folder / backing, parent_of(disk));
    }
    MemoryDevice device(disk.bytes, disk.extents, random.one_of<std::uint64_t>({1000, 100000, 1 << 30}));
    std::vector<std::uint64_t> progress;
    options.progress = [&](std::uint64_t done) { progress.push_back(done); };
    const std::string path = folder / "layer.qcow2";
    const WrittenLayer written = write_image(device, path, options, backing, "raw");

    const Image image(File::open_to_read(path));
    ASSERT_EQ(image.header().virtual_size, align_up(size, kSectorSize));
    EXPECT_EQ(extents_of_layer(image), stored_by_law(disk, geometry.unit(), options.position));

    must({"qemu-img", "check", "-q", "-f", "qcow2", path});
    Bytes expected = disk.bytes;
    expected.resize(align_up(size, kSectorSize));
    ASSERT_EQ(first_difference(content_by_qemu(path), expected), "");
    const auto chain = Chain::open(path, ImageFormat::Qcow2, {});
    ASSERT_EQ(first_difference(content_of(*chain), expected), "");
    ASSERT_EQ(chain->top().file().size(), written.file_bytes);

    // The accounts.
    EXPECT_EQ(written.data_bytes + written.zero_bytes + written.inherited_bytes, size);
    std::uint64_t data = 0;
    for (const Extent& extent : stored_by_law(disk, geometry.unit(), options.position)) {
      if (extent.kind != Kind::Data) continue;
      data += intersect(extent.range, guest_range(0, size)).length();
    }
    EXPECT_EQ(written.data_bytes, data);
    EXPECT_GE(written.read_bytes, written.data_bytes);
    EXPECT_TRUE(std::ranges::is_sorted(progress));
    EXPECT_EQ(progress.back(), size);

    // The same bytes from any number of workers.
    LayerOptions again = options;
    again.workers = options.workers == 1 ? 4 : 1;
    write_image(device, folder / "again.qcow2", again, backing, "raw");
    ASSERT_EQ(first_difference(read_file(folder / "again.qcow2"), read_file(path)), "");
  }
}

// In an overlay the parent's bytes must not show behind the disk's end, even where the disk inherits.
TEST_F(LayerTest, ALastSectorThatTheDiskDoesNotFillEndsInZeros) {
  const std::uint64_t size = 3 * 4096 + random.between(1, 511);
  Bytes parent(1 << 20);
  random.fill(parent);
  write_file(folder / "parent.raw", parent);
  Bytes expected(parent.begin(), parent.begin() + static_cast<std::ptrdiff_t>(size));
  MemoryDevice device(expected, {{guest_range(0, size), Kind::Inherit}}, size);
  LayerOptions options;
  options.position = Position::Overlay;
  options.cluster_bits = 12;
  const WrittenLayer written = write_image(device, folder / "layer.qcow2", options, "parent.raw", "raw");
  EXPECT_EQ(written.data_bytes, size % 4096);
  EXPECT_EQ(written.inherited_bytes, size / 4096 * 4096);
  expected.resize(align_up(size, kSectorSize));
  EXPECT_EQ(first_difference(content_by_qemu(folder / "layer.qcow2"), expected), "");
}

// Observes everything, and ignores it.
class Bystander : public Stage {
 public:
  void fetched(Batch&) override {}
};

TEST_F(LayerTest, NoStaleDataPastTheDisksEnd) {
  // The last cluster is cut, and what is read of it begins a block before it: an observer wants that block.
  constexpr std::uint64_t kMiB = 1 << 20;
  constexpr std::uint64_t kBlock = 64 << 10;
  constexpr std::uint64_t kEnd = 6 * kMiB + kMiB / 2;
  write_file(folder / "parent.raw", Bytes(6 * kMiB));
  Bytes bytes(kEnd, std::byte{0xAA});
  MemoryDevice device(bytes,
                      {{guest_range(0, 4 * kMiB), Kind::Data},
                       {guest_range(4 * kMiB, 2 * kMiB), Kind::Inherit},
                       {guest_range(6 * kMiB, kMiB / 2), Kind::Data}},
                      kEnd);
  LayerOptions options;
  options.position = Position::Overlay;
  options.cluster_bits = 21;
  options.observer = LayerObserver{[] { return std::make_unique<Bystander>(); }, kBlock,
                                   guest_range(6 * kMiB - kBlock, kBlock)};
  const std::string path = folder / "layer.qcow2";
  write_image(device, path, options, "parent.raw", "raw");
  const auto chain = Chain::open(path, ImageFormat::Qcow2, {});
  const Mapping last = chain->map(guest_range(6 * kMiB, kMiB / 2)).front();
  Bytes behind(2 * kMiB - kMiB / 2);
  chain->top().file().read(last.host + kMiB / 2, behind);
  EXPECT_TRUE(is_zero(behind));
}

// One Mapper for many queries, short and long, forwards and back: its table cache must not change the result.
TEST_F(LayerTest, AMapperAnswersTheSameInAnyOrder) {
  class Striped : public MemoryDevice {
   public:
    Striped() : MemoryDevice({}, {}, 0) {}
    std::uint64_t size() const override { return std::uint64_t{20000} << 12; }
    // Stripes of 3 clusters, of which the last is zeros; their kinds need no bytes.
    Extents extents(const GuestRange& range) override {
      const std::uint64_t stripe = range.begin.bytes() / (3 << 12) * (3 << 12);
      const Extents parts{{guest_range(stripe, 2 << 12), Kind::Inherit},
                          {guest_range(stripe + (2 << 12), 1 << 12), Kind::Zero}};
      return collect(clip(stream(parts), range));
    }
  };
  Striped device;
  for (const bool extended : {false, true}) {
    LayerOptions options;
    options.position = Position::Overlay;
    options.cluster_bits = extended ? 17 : 12;  // a unit is 4 KiB
    options.extended_l2 = extended;
    write_image(device, folder / "layer.qcow2", options);
    const Image image(File::open_to_read(folder / "layer.qcow2"));
    Mapper mapper(image);
    std::uint64_t at = 0;
    for (int question = 0; question < 3000; ++question) {
      at = random.chance(80) ? at : random.below(device.size());
      if (at >= device.size()) at = 0;
      const std::uint64_t longest = random.chance(90) ? 100000 : device.size();
      const GuestRange range = guest_range(at, random.between(1, std::min(longest, device.size() - at)));
      std::vector<Mapping> mappings;
      const GuestOffset end = mapper.map(range, random.between(1, 200), mappings);
      Extents got;
      for (const Mapping& mapping : mappings) append(got, {mapping.range, mapping.kind});
      ASSERT_EQ(got, collect(extents_of(device, {range.begin, end}))) << to_string(range);
      at = end.bytes();
    }
  }
}

// Above 8 MiB of data at 4 KiB clusters, refcount blocks fill up in the middle of the data.
TEST_F(LayerTest, ManyRefcountBlocks) {
  for (const char* const compression : {"none", "zlib"}) {
    const std::uint64_t size = (20 << 20) + 4096 * random.below(600);
    Bytes bytes(size);
    random.fill(bytes);
    LayerOptions options;
    options.cluster_bits = 12;
    options.workers = 4;
    options.compression = parse_compression(compression);
    if (options.compression) thin_out(bytes);
    MemoryDevice device(bytes, {{guest_range(0, size), Kind::Data}}, size);
    const WrittenLayer written = write_image(device, folder / "layer.qcow2", options);
    EXPECT_EQ(written.compressed_clusters > 1000, options.compression.has_value());
    must({"qemu-img", "check", "-q", "-f", "qcow2", folder / "layer.qcow2"});
    EXPECT_EQ(first_difference(content_by_qemu(folder / "layer.qcow2"), bytes), "");
  }
}

// A disk whose L1 table has many entries of which few are used; costs depend on what is used.
TEST_F(LayerTest, AnEmptyLayerOfAHugeDiskIsSmall) {
  class Huge : public MemoryDevice {
   public:
    Huge() : MemoryDevice({}, {}, 0) {}
    std::uint64_t size() const override { return std::uint64_t{16} << 40; }
    Extents extents(const GuestRange& range) override { return {{range, Kind::Inherit}}; }
  };
  Huge device;
  for (const Position position : {Position::Bottom, Position::Overlay}) {
    LayerOptions options;
    options.position = position;
    const WrittenLayer written = write_image(device, folder / "layer.qcow2", options);
    EXPECT_LT(written.file_bytes, 1U << 20);
    EXPECT_EQ(written.inherited_bytes, device.size());
    must({"qemu-img", "check", "-q", "-f", "qcow2", folder / "layer.qcow2"});
  }
}

TEST_F(LayerTest, ADiskWithoutBytesIsALayer) {
  MemoryDevice device({}, {}, 1);
  write_image(device, folder / "layer.qcow2", {});
  must({"qemu-img", "check", "-q", "-f", "qcow2", folder / "layer.qcow2"});
  EXPECT_EQ(Chain::open(folder / "layer.qcow2", ImageFormat::Qcow2, {})->size(), 0U);
}

// The header is written last: what a crash leaves is not an image.
TEST_F(LayerTest, WithoutItsHeaderItIsNotAnImage) {
  MemoryDevice device(Bytes(1 << 20, std::byte{1}), {{guest_range(0, 1 << 20), Kind::Data}}, 1 << 20);
  const File file = create_file(folder / "layer.qcow2");
  const WrittenLayer written = write_layer(device, file, {});
  EXPECT_EQ(outcome_of([&] { Image(File::open_to_read(folder / "layer.qcow2")); }), Outcome::Mismatch);
  write_header(file, written.header);
  EXPECT_EQ(outcome_of([&] { Image(File::open_to_read(folder / "layer.qcow2")); }), Outcome::Done);
}

// A guest that starts from the image writes to it.
TEST_F(LayerTest, QemuCanWriteToALayer) {
  for (int round = 0; round < 3; ++round) {
    LayerOptions options = any_options();
    options.position = Position::Bottom;
    const std::uint64_t size = align_up(random.between(1, 20) << options.cluster_bits, 65536);
    Disk disk = random_disk(random, size, 1 << options.cluster_bits, options.position);
    if (options.compression) thin_out(disk.bytes);
    MemoryDevice device(disk.bytes, disk.extents, size);
    const std::string path = folder / "layer.qcow2";
    write_image(device, path, options);
    std::vector<std::string> command{"qemu-io", "-f", "qcow2"};
    for (int i = 0; i < 10; ++i) {
      const std::uint64_t at = align_down(random.below(size), 512);
      const std::uint64_t length = 512 * random.between(1, std::min<std::uint64_t>((size - at) / 512, 300));
      command.insert(command.end(), {"-c", "write -P " + std::to_string(i + 1) + ' ' + std::to_string(at) +
                                               ' ' + std::to_string(length)});
      std::ranges::fill(std::span(disk.bytes).subspan(at, length), static_cast<std::byte>(i + 1));
    }
    command.push_back(path);
    must(command);
    must({"qemu-img", "check", "-q", "-f", "qcow2", path});
    EXPECT_EQ(first_difference(content_by_qemu(path), disk.bytes), "");
  }
}

TEST_F(LayerTest, AReadErrorLeavesNoImage) {
  class Broken : public MemoryDevice {
   public:
    using MemoryDevice::MemoryDevice;
    std::unique_ptr<Reader> open_reader() override {
      class Failing : public Reader {
        void read(std::span<const ReadRequest> batch) override {
          if (batch.front().begin >= GuestOffset(5 << 20)) throw Error(Outcome::Io, "unreadable");
        }
      };
      return std::make_unique<Failing>();
    }
  };
  constexpr std::uint64_t kSize = 16 << 20;
  Broken device(Bytes(kSize), {{guest_range(0, kSize), Kind::Data}}, kSize);
  LayerOptions options;
  options.workers = 3;
  EXPECT_EQ(outcome_of([&] { write_image(device, folder / "layer.qcow2", options); }), Outcome::Io);
  EXPECT_EQ(outcome_of([&] { Image(File::open_to_read(folder / "layer.qcow2")); }), Outcome::Mismatch);
}

class CompressionTest : public LayerTest {};

TEST_F(CompressionTest, StreamsSurviveAndAreSmaller) {
  for (const char* const name : {"zlib", "zstd", "zlib:1", "zlib:9", "zstd:1", "zstd:19"}) {
    const CompressionChoice choice = *parse_compression(name);
    Compressor compressor(choice);
    for (int round = 0; round < 30; ++round) {
      Bytes cluster(std::size_t{1} << random.bits(12, 16));
      random.fill(cluster);
      thin_out(cluster);
      Bytes streams(random.below(100));  // what is there already stays
      const Bytes before = streams;
      const std::size_t length = compressor.compress(cluster, streams);
      ASSERT_EQ(streams.size(), before.size() + length);
      ASSERT_TRUE(std::equal(before.begin(), before.end(), streams.begin()));
      if (length == 0) continue;
      ASSERT_LT(length, cluster.size());
      // Followed by other bytes, as in a file.
      Bytes stream(streams.begin() + static_cast<std::ptrdiff_t>(before.size()), streams.end());
      stream.resize(length + random.below(512), std::byte{0xAB});
      Bytes read(cluster.size());
      ASSERT_EQ(decompress(choice.type, stream, read).error, "");
      ASSERT_EQ(first_difference(read, cluster), "");
      // Cut short: an error, or all that was there but for the stream's own end.
      stream.resize(random.below(length));
      std::ranges::fill(read, std::byte{0});
      const std::string error = decompress(choice.type, stream, read).error;
      ASSERT_TRUE(error != "" || read == cluster);
      if (stream.size() + 16 < length) {
        ASSERT_NE(error, "");
      }
    }
  }
}

TEST_F(CompressionTest, DamageIsSeenOrHarmless) {
  for (int round = 0; round < 400; ++round) {
    const CompressionChoice choice = *parse_compression(random.one_of<std::string>({"zlib", "zstd"}));
    Bytes cluster(4096);
    random.fill(cluster);
    for (std::byte& byte : cluster) byte &= std::byte{0x13};
    Bytes stream;
    ASSERT_GT(Compressor(choice).compress(cluster, stream), 0U);
    for (std::uint64_t hits = random.between(1, 5); hits > 0; --hits) {
      stream[random.below(stream.size())] = static_cast<std::byte>(random.word());
    }
    Bytes read(cluster.size());  // exactly as large, so that ASan sees a step past it
    decompress(choice.type, stream, read);
  }
}

TEST_F(CompressionTest, AStreamOfAnotherLengthThanTheClusterIsAnError) {
  Bytes cluster(65536);
  random.fill(cluster);
  for (std::byte& byte : cluster) byte &= std::byte{0x13};
  for (const char* const name : {"zlib", "zstd"}) {
    const CompressionChoice choice = *parse_compression(name);
    Bytes stream;
    ASSERT_GT(Compressor(choice).compress(cluster, stream), 0U);
    Bytes larger(cluster.size() + 1);
    EXPECT_NE(decompress(choice.type, stream, larger).error, "");
    if (choice.type == Compression::Deflate) continue;  // QEMU takes what fills the cluster
    Bytes smaller(cluster.size() - 1);
    EXPECT_NE(decompress(choice.type, stream, smaller).error, "");
    // Two frames can make a cluster.
    const Bytes first = stream;
    stream.insert(stream.end(), first.begin(), first.end());
    Bytes both(2 * cluster.size());
    EXPECT_EQ(decompress(choice.type, stream, both).error, "");
    EXPECT_TRUE(std::equal(cluster.begin(), cluster.end(), both.begin() + 65536));
  }
}

TEST_F(CompressionTest, NoiseIsNotCompressed) {
  Bytes cluster(65536);
  random.fill(cluster);
  for (const char* const name : {"zlib", "zstd"}) {
    Bytes streams;
    EXPECT_EQ(Compressor(*parse_compression(name)).compress(cluster, streams), 0U);
    EXPECT_TRUE(streams.empty());
  }
}

// Incompressible clusters stay uncompressed among compressed ones, and the bytes of the layer do not depend
// on the number of threads.
TEST_F(CompressionTest, WhatDoesNotShrinkStaysPlainWhateverTheThreads) {
  constexpr std::uint64_t kCluster = 65536;
  constexpr std::uint64_t kClusters = 72;  // several pieces of work
  for (const char* const name : {"zlib:1", "zlib", "zstd", "zstd:9"}) {
    Bytes bytes(kClusters * kCluster);
    random.fill(bytes);
    std::vector<Storage> expected;
    for (std::uint64_t i = 0; i < kClusters; ++i) {
      const bool noise = random.chance(30);
      expected.push_back(noise ? Storage::Plain : Storage::Compressed);
      if (noise) continue;
      for (std::byte& byte : std::span(bytes).subspan(i * kCluster, kCluster)) byte &= std::byte{0x11};
    }
    MemoryDevice device(bytes, {{guest_range(0, bytes.size()), Kind::Data}}, bytes.size());
    LayerOptions options;
    options.compression = parse_compression(name);
    Bytes first;
    for (const unsigned workers : {1, 2, 5}) {
      options.workers = workers;
      write_image(device, folder / "layer.qcow2", options);
      const Bytes written = read_file(folder / "layer.qcow2");
      if (first.empty()) first = written;
      ASSERT_EQ(first_difference(written, first), "") << name << ", " << workers << " threads";
    }
    std::vector<Storage> stored;
    for (const Mapping& mapping : whole_map(*Chain::open(folder / "layer.qcow2", ImageFormat::Qcow2, {}))) {
      stored.insert(stored.end(), mapping.range.length() / kCluster, mapping.storage);
    }
    EXPECT_EQ(stored, expected) << name;
    EXPECT_EQ(first_difference(content_by_qemu(folder / "layer.qcow2"), bytes), "");
  }
}

TEST_F(CompressionTest, ChoicesAreParsed) {
  EXPECT_FALSE(parse_compression("none"));
  EXPECT_EQ(parse_compression("zlib:3")->level, 3);
  EXPECT_EQ(parse_compression("zstd:19")->type, Compression::Zstd);
  for (const char* const bad :
       {"", "gzip", "zlib:", "zlib:0", "zlib:10", "zlib:-1", "zstd:99", "zstd:1x", "zlib:1:1", "none:1"}) {
    EXPECT_EQ(outcome_of([&] { parse_compression(bad); }), Outcome::Usage) << bad;
  }
}

}  // namespace
}  // namespace qchain::tests
