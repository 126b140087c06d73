// Compressed and zero clusters as other writers make them: what QEMU reads is read, and what it refuses is
// refused.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "qcow2/chain.h"
#include "qcow2/compression.h"
#include "tests/check/images.h"
#include "tests/random.h"
#include "tests/support.h"

namespace qchain::tests {
namespace {

constexpr std::uint64_t kCluster = 65536;

class StreamTest : public RandomTest {
 protected:
  // An image of one cluster, which is the stream that begins `shift` bytes into its host cluster.
  std::string image_of(const char* compression, const Bytes& stream, std::uint64_t shift = 0) {
    std::string path = folder_ / "image.qcow2";
    must({"qemu-img", "create", "-q", "-f", "qcow2", "-o", fmt::format("compression_type={}", compression),
          path, std::to_string(kCluster)});
    must({"qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64k", path});
    DamagedImage image(path);
    const MetadataMap metadata(image);
    const std::uint64_t begin = metadata.host(metadata.l2.front()) + shift;
    image.put(begin, stream);
    const std::uint64_t more_sectors = (begin + stream.size() - 1) / 512 - begin / 512;
    image.put(metadata.l2.front().at, std::uint64_t{1} << 62 | more_sectors << 54 | begin);
    return path;
  }

  void expect_read(const std::string& path, const Bytes& content) {
    EXPECT_EQ(first_difference(content_by_qemu(path), content), "");
    EXPECT_EQ(first_difference(content_of(*Chain::open(path, ImageFormat::Qcow2, {})), content), "");
    const CheckReport report = check_by_us(path, Payloads::All);
    EXPECT_EQ(report.outcome(true), Outcome::Done) << words_of(report);
    EXPECT_EQ(report.layers.at(0).decoded_payloads, 1U);
  }

  void expect_refused(const std::string& path) {
    EXPECT_NE(run({"qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, folder_ / "out"}).status, 0);
    EXPECT_EQ(outcome_of([&] { content_of(*Chain::open(path, ImageFormat::Qcow2, {})); }), Outcome::Mismatch);
    EXPECT_EQ(count(check_by_us(path, Payloads::All), Flaw::BadStream), 1U);
  }

  // By zlib itself, with a window of any size; a negative one is a raw stream.
  static Bytes deflated(const Bytes& content, int window) {
    z_stream z{};
    EXPECT_EQ(deflateInit2(&z, 9, Z_DEFLATED, window, 9, Z_DEFAULT_STRATEGY), Z_OK);
    Bytes stream(deflateBound(&z, content.size()));
    z.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(content.data()));
    z.avail_in = static_cast<uInt>(content.size());
    z.next_out = reinterpret_cast<Bytef*>(stream.data());
    z.avail_out = static_cast<uInt>(stream.size());
    EXPECT_EQ(deflate(&z, Z_FINISH), Z_STREAM_END);
    stream.resize(stream.size() - z.avail_out);
    deflateEnd(&z);
    return stream;
  }

  static void add_frame(std::span<const std::byte> content, Bytes& stream) {
    EXPECT_GT(Compressor(*parse_compression("zstd")).compress(content, stream), 0U);
  }

  // A cluster that compresses.
  Bytes thin_cluster() {
    Bytes cluster(kCluster);
    random.fill(cluster);
    for (std::byte& byte : cluster) byte &= std::byte{0x13};
    return cluster;
  }

  Folder folder_;
};

TEST_F(StreamTest, DeflateMayLookBack32KiB) {
  // Noise that is there twice, farther away than QEMU's own window reaches.
  for (const std::size_t distance : {5000, 16000, 32000}) {
    Bytes content(kCluster);
    random.fill(content);
    for (std::size_t i = distance; i < content.size(); ++i) content[i] = content[i - distance];
    const Bytes stream = deflated(content, -15);
    ASSERT_LT(stream.size(), distance + 2000) << "the stream does look back that far";
    expect_read(image_of("zlib", stream), content);
  }
}

TEST_F(StreamTest, DeflateInAWrapperIsRefused) {
  expect_refused(image_of("zlib", deflated(thin_cluster(), 15)));
}

TEST_F(StreamTest, ZstdMayBeSeveralFrames) {
  const Bytes content = thin_cluster();
  for (const std::size_t pieces : {2, 3, 7}) {
    Bytes stream;
    for (std::size_t begin = 0, i = 1; i <= pieces; ++i) {
      const std::size_t end =
          i == pieces ? content.size() : begin + random.between(1000, content.size() / pieces);
      add_frame(std::span(content).subspan(begin, end - begin), stream);
      begin = end;
    }
    expect_read(image_of("zstd", stream), content);
    stream.resize(stream.size() - 5);
    expect_refused(image_of("zstd", stream));
  }
}

TEST_F(StreamTest, OtherBytesMayFollow) {
  const Bytes content = thin_cluster();
  for (const char* const compression : {"zlib", "zstd"}) {
    Bytes stream;
    Compressor(*parse_compression(compression)).compress(content, stream);
    const std::size_t length = stream.size();
    for (const std::size_t more : {1, 511, 512, 5000}) {
      SCOPED_TRACE(fmt::format("{}, {} bytes more", compression, more));
      stream.resize(length);
      stream.resize(length + more);
      expect_read(image_of(compression, stream), content);
      random.fill(std::span(stream).subspan(length));
      expect_read(image_of(compression, stream, random.below(512)), content);
    }
  }
}

TEST_F(StreamTest, AStreamThatIsTooShortOrTooLong) {
  for (const std::size_t size : {kCluster - 1, kCluster + 1}) {
    Bytes content = thin_cluster();
    content.resize(size, std::byte{1});
    Bytes stream;
    add_frame(content, stream);
    expect_refused(image_of("zstd", stream));
    // QEMU accepts a deflate stream with more output.
    if (size < kCluster) expect_refused(image_of("zlib", deflated(content, -12)));
  }
}

// Only the entry shows whether a zero cluster has a host cluster; the content of that cluster is never
// visible.
TEST_F(StreamTest, ZeroClustersWithAndWithoutPreallocation) {
  for (const bool extended : {false, true}) {
    must({"qemu-img", "create", "-q", "-f", "qcow2", folder_ / "base.qcow2", "256k"});
    must({"qemu-io", "-f", "qcow2", "-c", "write -P 9 0 256k", folder_ / "base.qcow2"});
    const std::string path = folder_ / "top.qcow2";
    must({"qemu-img", "create", "-q", "-f", "qcow2", "-o", extended ? "extended_l2=on" : "extended_l2=off",
          "-b", "base.qcow2", "-F", "qcow2", path, "256k"});
    must({"qemu-io", "-f", "qcow2", "-c", "write -P 5 0 64k", "-c", "write -z 0 128k", path});
    DamagedImage image(path);
    const MetadataMap metadata(image);
    const std::uint64_t host = metadata.host(metadata.l2.at(0));
    ASSERT_NE(host, 0U) << "preallocated";
    ASSERT_EQ(metadata.host(metadata.l2.at(1)), 0U) << "not preallocated";
    EXPECT_EQ(image.number(host, 1), 5U) << "the old data is still there";

    Bytes expected(256 << 10, std::byte{9});
    std::fill_n(expected.begin(), 128 << 10, std::byte{0});
    const auto chain = Chain::open(path, ImageFormat::Qcow2, {});
    EXPECT_EQ(first_difference(content_of(*chain), expected), "");
    EXPECT_EQ(first_difference(content_by_qemu(path), expected), "");
    EXPECT_EQ(chain->map(guest_range(0, 256 << 10)).front().range, guest_range(0, 128 << 10));
    EXPECT_EQ(check_by_us(path).outcome(true), Outcome::Done);
  }
}

}  // namespace
}  // namespace qchain::tests
