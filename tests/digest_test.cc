// Digests: the vectors of blkhash, a naive computation of the same, and the tools of the system.
#include "verify/content_digest.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "extent/raw_file.h"
#include "tests/random.h"
#include "tests/support.h"
#include "verify/device_digest.h"

namespace qchain::tests {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;
constexpr Algorithm kAll[] = {Algorithm::Sha256, Algorithm::Sha512, Algorithm::Blake2b512,
                              Algorithm::Xxh3_128};

// D = H( H(B0) || ... || H(Bn-1) || LE64(length) ), written out.
Digest naive(Algorithm algorithm, std::span<const std::byte> bytes) {
  Hasher inner(algorithm);
  Bytes outer;
  for (std::size_t at = 0; at < bytes.size(); at += kDigestBlock) {
    const Digest block = inner.of(bytes.subspan(at, std::min<std::size_t>(kDigestBlock, bytes.size() - at)));
    outer.insert(outer.end(), block.bytes().begin(), block.bytes().end());
  }
  for (unsigned i = 0; i < 8; ++i) {
    outer.push_back(static_cast<std::byte>(std::uint64_t{bytes.size()} >> (8 * i)));
  }
  return Hasher(algorithm).of(outer);
}

Bytes bytes_of(const std::string& text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

class DigestTest : public RandomTest {
 protected:
  // A disk as random_disk() makes them, or one that is mostly zeros.
  Disk any_disk() {
    const std::uint64_t size = random.between(0, 4 * kMiB);
    Disk disk =
        random_disk(random, size, random.one_of<std::uint64_t>({512, 5000, 65536, kMiB}), Position::Bottom);
    return disk;
  }

  Folder folder;
};

TEST_F(DigestTest, VectorsOfBlkhash) {
  Bytes hello_goodbye(kMiB);
  const Bytes hello = bytes_of("hello");
  const Bytes goodbye = bytes_of("goodbye");
  std::ranges::copy(hello, hello_goodbye.begin());
  hello_goodbye.insert(hello_goodbye.end(), goodbye.begin(), goodbye.end());
  const struct {
    Bytes bytes;
    const char* digest;
  } vectors[] = {
      {{}, "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc"},
      {hello, "337355feb53a5309d5aba92796223c2c84ffab930e706c01fef573a2722545e6"},
      {Bytes(65536, std::byte{'A'}), "2e3a5f57d5e726ee5de62db1a85ff816f4fa6ea4627807d9a51bdc4c883e165e"},
      {Bytes(65536), "8ab067ab7939a3d4f40cbb118956c07c06aeae2d075d6e0a2ebbb94bd42832af"},
      {Bytes(32768), "842d185f0ff348b0d689e184bddc47f69a19032a6934c89b879479f1e86f9d56"},
      {hello_goodbye, "61b8f3a8cea76e16eeff7ce27f1b7711c1f1e437f5038cec17773772a4bded28"},
  };
  for (const auto& vector : vectors) {
    const std::uint64_t size = vector.bytes.size();
    MemoryDevice memory(vector.bytes, {{guest_range(0, size), Kind::Data}}, kMiB);
    EXPECT_EQ(digest_of(memory, size, {}).hex(), vector.digest) << size;
    write_file(folder / "raw", vector.bytes);
    RawFile raw(File::open_to_read(folder / "raw"));
    EXPECT_EQ(digest_of(raw, raw.size(), {}).hex(), vector.digest) << size;
  }
  // What is known to be zeros counts as such without being read.
  MemoryDevice zeros(Bytes(65536), {{guest_range(0, 65536), Kind::Zero}}, kMiB);
  EXPECT_EQ(digest_of(zeros, 65536, {}).hex(), vectors[3].digest);
}

TEST_F(DigestTest, AnyDiskIsTheNaiveDigest) {
  for (int round = 0; round < rounds(24); ++round) {
    const Disk disk = any_disk();
    MemoryDevice device(disk.bytes, disk.extents, random.one_of<std::uint64_t>({700, 65536, 1 << 30}));
    DigestOptions options;
    options.algorithm = kAll[random.below(std::size(kAll))];
    options.workers = random.bits(1, 4);
    std::uint64_t done = 0;
    options.progress = [&](std::uint64_t bytes) {
      EXPECT_GT(bytes, done);
      done = bytes;
    };
    const std::uint64_t length = random.chance(60) ? disk.bytes.size() : random.between(0, disk.bytes.size());
    const Digest digest = digest_of(device, length, options);
    ASSERT_EQ(digest, naive(options.algorithm, std::span(disk.bytes).first(length)));
    ASSERT_EQ(digest.bytes().size(), digest_size(options.algorithm));
    EXPECT_EQ(done, length);
  }
}

TEST_F(DigestTest, AnyRawFileIsTheNaiveDigest) {
  for (int round = 0; round < 6; ++round) {
    const Disk disk = any_disk();
    const File file = create_file(folder / "raw");
    file.resize(disk.bytes.size());
    for (const Extent& extent : disk.extents) {
      if (extent.kind != Kind::Data) continue;
      file.write(HostOffset(extent.range.begin.bytes()),
                 std::span(disk.bytes).subspan(extent.range.begin.bytes(), extent.range.length()));
    }
    RawFile raw(File::open_to_read(folder / "raw"));
    EXPECT_EQ(digest_of(raw, raw.size(), {}), naive(Algorithm::Sha256, disk.bytes));
  }
}

TEST_F(DigestTest, ZerosAreBlocksOfZeros) {
  for (int round = 0; round < 60; ++round) {
    const Algorithm algorithm = kAll[random.below(std::size(kAll))];
    DiskDigest by_zeros(algorithm);
    DiskDigest by_blocks(algorithm);
    Hasher hasher(algorithm);
    const Digest zero_block = hasher.of(Bytes(kDigestBlock));
    const Digest other = hasher.of(bytes_of("other"));
    const auto add_zero_blocks = [&](std::uint64_t length) {
      for (; length >= kDigestBlock; length -= kDigestBlock) by_blocks.add_block(zero_block, kDigestBlock);
      if (length > 0) by_blocks.add_block(hasher.of(Bytes(length)), length);
    };
    for (std::uint64_t i = random.below(4); i > 0; --i) {
      const std::uint64_t length = kDigestBlock * random.between(0, 1200);
      by_zeros.add_zeros(length);
      add_zero_blocks(length);
      by_zeros.add_block(other, kDigestBlock);
      by_blocks.add_block(other, kDigestBlock);
    }
    const std::uint64_t last = random.below(3 * kDigestBlock);
    by_zeros.add_zeros(last);
    add_zero_blocks(last);
    ASSERT_EQ(by_zeros.finish(), by_blocks.finish());
  }
}

TEST_F(DigestTest, EveryByteAndTheLengthCount) {
  Bytes bytes(200000);
  random.fill(bytes);
  const Digest digest = naive(Algorithm::Sha256, bytes);
  for (int round = 0; round < 20; ++round) {
    Bytes other = bytes;
    if (random.chance(50)) {
      other[random.below(other.size())] ^= std::byte{1};
    } else {
      other.resize(other.size() + random.between(1, 100));
    }
    MemoryDevice device(other, {{guest_range(0, other.size()), Kind::Data}}, kMiB);
    EXPECT_NE(digest_of(device, other.size(), {}), digest);
  }
}

// The hashes themselves, compared with the system's tools.
TEST_F(DigestTest, HashesAreThoseOfTheSystem) {
  for (int round = 0; round < 4; ++round) {
    Bytes bytes(random.below(100000));
    random.fill(bytes);
    write_file(folder / "file", bytes);
    for (const auto& [algorithm, tool] :
         {std::pair{Algorithm::Sha256, "sha256sum"}, std::pair{Algorithm::Sha512, "sha512sum"},
          std::pair{Algorithm::Blake2b512, "b2sum"}}) {
      Hasher hasher(algorithm);
      for (std::span<const std::byte> rest = bytes; !rest.empty();) {
        const std::size_t step = random.between(1, rest.size());
        hasher.add(rest.first(step));
        rest = rest.subspan(step);
      }
      const Digest digest = hasher.finish();
      EXPECT_EQ(must({tool, folder / "file"}).substr(0, digest.hex().size()), digest.hex());
      EXPECT_EQ(hasher.of(bytes), digest) << "starts over after finish()";
    }
  }
  // From the specification of XXH3: no bytes, seed 0; in canonical order.
  EXPECT_EQ(Hasher(Algorithm::Xxh3_128).of({}).hex(), "99aa06d3014798d86001c324468d497f");
}

TEST_F(DigestTest, AlgorithmsHaveNames) {
  for (const Algorithm algorithm : kAll) {
    EXPECT_EQ(algorithm_named(to_string(algorithm)), algorithm);
    EXPECT_EQ(Hasher(algorithm).algorithm(), algorithm);
    EXPECT_EQ(is_cryptographic(algorithm), algorithm != Algorithm::Xxh3_128);
  }
  for (const char* const name : {"", "md5", "SHA256", "sha256 "}) {
    EXPECT_EQ(outcome_of([&] { algorithm_named(name); }), Outcome::Usage) << name;
  }
}

TEST(ContentDigestTest, TextIsParsedBackAndNothingElseIs) {
  for (const Algorithm algorithm :
       {Algorithm::Sha256, Algorithm::Sha512, Algorithm::Blake2b512, Algorithm::Xxh3_128}) {
    const ContentDigest digest{algorithm, Hasher(algorithm).of({})};
    const std::string text = digest.text();
    EXPECT_EQ(ContentDigest::parse(text), digest);
    for (const std::string& wrong :
         {text.substr(1), text + "0", text.substr(0, text.size() - 2), text.substr(text.find(':') + 1),
          text.substr(0, text.size() - 1) + "G"}) {
      EXPECT_EQ(ContentDigest::parse(wrong), std::nullopt) << wrong;
    }
  }
  EXPECT_EQ(ContentDigest::parse(""), std::nullopt);
  EXPECT_EQ(text_of(std::nullopt), "");
}

}  // namespace
}  // namespace qchain::tests
