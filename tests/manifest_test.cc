// The bytes of a manifest: what was written can be read, anything else is refused.
#include "verify/manifest.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/random.h"
#include "tests/support.h"
#include "verify/chain_digests.h"
#include "verify/root_fold.h"

namespace qchain::tests {
namespace {

constexpr const char* kUuid = "01234567-89ab-4def-8123-456789abcdef";
constexpr const char* kOtherUuid = "fedcba98-7654-4321-8fed-cba987654321";
constexpr std::size_t kOwnDigest = 32;
constexpr std::size_t kSignature = 8 + 32 + 64;

// The record of one block in a manifest; no entry: none.
struct BlockWord {
  Held held = Held::None;
  Digest whole;
  Digest part;

  friend bool operator==(const BlockWord&, const BlockWord&) = default;
};
using BlockWords = std::map<std::uint64_t, BlockWord>;

struct Draft {
  ManifestHeader header;
  BlockWords blocks;
  std::optional<Digest> root;
  std::optional<ManifestSignature> signature;
};

void put(Bytes& bytes, std::string_view text) {
  for (const char c : text) bytes.push_back(static_cast<std::byte>(c));
}

void put(Bytes& bytes, std::uint64_t value, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i) bytes.push_back(static_cast<std::byte>(value >> (8 * i)));
}

void put(Bytes& bytes, const Digest& digest) {
  bytes.insert(bytes.end(), digest.bytes().begin(), digest.bytes().end());
}

Digest sha256(std::span<const std::byte> bytes) { return Hasher(Algorithm::Sha256).of(bytes); }

class ManifestTest : public RandomTest {
 protected:
  Digest any_digest(Algorithm algorithm) {
    Digest digest(digest_size(algorithm));
    random.fill(digest.bytes());
    return digest;
  }

  Draft any_manifest(std::uint64_t most_blocks) {
    Draft manifest;
    ManifestHeader& header = manifest.header;
    header.algorithm =
        random.one_of({Algorithm::Sha256, Algorithm::Sha512, Algorithm::Blake2b512, Algorithm::Xxh3_128});
    header.length = random.between(0, most_blocks * kDigestBlock);
    header.overlay = random.chance(50);
    if (random.chance(70)) header.layer_id = kUuid;
    if (random.chance(50)) header.parent_id = kOtherUuid;
    if (random.chance(50)) header.parent_root = ContentDigest{header.algorithm, any_digest(header.algorithm)};
    if (random.chance(50)) header.checkpoint = random.text(random.between(1, 100));
    if (random.chance(50)) header.since = "\"\\ü€\n" + random.text(random.between(1, 100));
    header.origin = random.one_of({Origin::Pull, Origin::Seal, Origin::Restore});
    for (std::string* const text : {&header.time, &header.sealed_time, &header.file, &header.export_name,
                                    &header.domain, &header.target}) {
      if (random.chance(50)) *text = random.text(random.between(1, 40));
    }
    header.is_resealed = random.chance(50);
    header.is_signed_unproven = random.chance(50);
    for (std::uint64_t at = 0; at < header.blocks();) {
      const Held held = random.one_of({Held::None, Held::Data, Held::Zeros, Held::Part});
      const std::uint64_t run = random.one_of<std::uint64_t>({1, 2, 10, 300});
      const std::uint64_t end = std::min(header.blocks(), at + run);
      for (; at < end; ++at) {
        if (held == Held::None) continue;
        BlockWord& block = manifest.blocks[at];
        block.held = held;
        if (held != Held::Zeros) block.whole = any_digest(header.algorithm);
        if (held == Held::Part) block.part = any_digest(header.algorithm);
      }
    }
    if (random.chance(70)) manifest.root = any_digest(header.algorithm);
    if (random.chance(30)) {
      manifest.signature.emplace();
      random.fill(manifest.signature->key);
      random.fill(manifest.signature->signature);
    }
    return manifest;
  }

  Digest write(const Draft& manifest) {
    const File file = create_file(path);
    ManifestWriter writer(file, manifest.header);
    for (auto block = manifest.blocks.begin(); block != manifest.blocks.end();) {
      const auto& [index, word] = *block;
      if (word.held != Held::Zeros) {
        writer.add(word.held, index, word.whole, word.part);
        ++block;
        continue;
      }
      // Zeros come in any portions.
      std::uint64_t count = 0;
      const std::uint64_t most = random.between(1, 50);
      for (; count < most && block != manifest.blocks.end() && block->first == index + count &&
             block->second.held == Held::Zeros;
           ++block) {
        ++count;
      }
      writer.add_zeros(index, count);
    }
    const Digest own = writer.finish(manifest.root);
    if (manifest.signature) writer.sign(*manifest.signature);
    return own;
  }

  static Outcome reading(const std::string& file) {
    return outcome_of([&] { Manifest opened(file); });
  }

  // A header as in a file.
  static Bytes header_bytes(std::string_view json) {
    Bytes bytes;
    put(bytes, "QCHNMF01");
    put(bytes, json.size(), 4);
    put(bytes, json);
    return bytes;
  }
  static std::string json_of(const std::string& length) {
    return R"({"algorithm":"sha256","block_size":65536,"length":)" + length +
           R"(,"overlay":true,"origin":"pull"})";
  }
  static void put_record(Bytes& bytes, unsigned kind, std::uint64_t first, std::uint64_t count) {
    put(bytes, kind, 1);
    put(bytes, first, 8);
    put(bytes, count, 8);
  }
  // The end of a manifest, with its own digest right, so that nothing but what is meant is wrong.
  static void put_end(Bytes& bytes, std::uint64_t blocks) {
    put_record(bytes, 255, blocks, 0);
    put(bytes, 0, 1);
    put(bytes, Digest(32));
    put(bytes, sha256(bytes));
  }
  Outcome reading(const Bytes& bytes) {
    write_file(path, bytes);
    return reading(path);
  }

  Folder folder;
  const std::string path = folder / "layer.qcow2.manifest";
};

TEST_F(ManifestTest, WhatIsWrittenIsRead) {
  for (int round = 0; round < 40; ++round) {
    const Draft manifest = any_manifest(random.one_of<std::uint64_t>({0, 1, 5, 1500}));
    const Digest own = write(manifest);

    ManifestReader reader(path);
    EXPECT_EQ(reader.header(), manifest.header);
    BlockWords found;
    ManifestRecord record;
    ManifestRecord last;
    while (reader.next(record)) {
      ASSERT_GT(record.count, 0U);
      const bool zeros = record.held == Held::Zeros;
      ASSERT_EQ(record.whole.size(), zeros ? 0 : record.count);
      ASSERT_EQ(record.part.size(), record.held == Held::Part ? record.count : 0);
      // Two records never touch without need.
      const bool touch = last.count > 0 && last.held == record.held && last.end() == record.first;
      ASSERT_FALSE(touch && (zeros || last.count < kMaxRecordBlocks));
      for (std::uint64_t i = 0; i < record.count; ++i) {
        BlockWord& word = found[record.first + i];
        ASSERT_EQ(word.held, Held::None) << "twice";
        word.held = record.held;
        if (!zeros) word.whole = record.whole[i];
        if (record.held == Held::Part) word.part = record.part[i];
      }
      last = record;
    }
    EXPECT_EQ(found, manifest.blocks);
    EXPECT_EQ(reader.root(), manifest.root);
    EXPECT_EQ(reader.own_digest(), own);
    EXPECT_EQ(reader.signature(), manifest.signature);
    // Its own digest is the SHA-256 of everything before it.
    const Bytes bytes = read_file(path);
    const std::size_t end = bytes.size() - (manifest.signature ? kSignature : 0) - kOwnDigest;
    EXPECT_EQ(own, sha256(std::span(bytes).first(end)));
    EXPECT_TRUE(std::ranges::equal(own.bytes(), std::span(bytes).subspan(end, kOwnDigest)));
    const ManifestSummary summary = Manifest(path).summary();
    EXPECT_EQ(summary.header, manifest.header);
    EXPECT_EQ(summary.root, manifest.root);
    EXPECT_EQ(summary.own_digest, own);
  }
}

// The format, byte by byte, as MANIFEST.md has it: what was written years ago has to be read.
TEST_F(ManifestTest, TheBytesOnDisk) {
  Draft manifest;
  manifest.header.length = 10 * kDigestBlock - 1000;
  manifest.header.overlay = true;
  manifest.header.layer_id = kUuid;
  manifest.header.parent_id = kOtherUuid;
  manifest.header.origin = Origin::Seal;
  manifest.header.time = "2026-11-28T18:00:00Z";
  manifest.header.sealed_time = "2026-12-01T18:00:00Z";
  manifest.header.file = "a.qcow2";
  manifest.header.export_name = manifest.header.target = "vda";
  manifest.header.domain = kOtherUuid;
  manifest.header.is_resealed = manifest.header.is_signed_unproven = true;
  const auto digest = [](unsigned char value) {
    Digest filled(32);
    std::ranges::fill(filled.bytes(), std::byte{value});
    return filled;
  };
  manifest.blocks[1] = {Held::Data, digest(1), {}};
  manifest.blocks[2] = {Held::Data, digest(2), {}};
  manifest.blocks[3] = {Held::Zeros, {}, {}};
  manifest.blocks[4] = {Held::Zeros, {}, {}};
  manifest.blocks[9] = {Held::Part, digest(3), digest(4)};
  manifest.root = digest(5);
  write(manifest);

  Bytes expected = header_bytes(
      R"({"algorithm":"sha256","block_size":65536,"length":654360,"overlay":true,)"
      R"("layer":"01234567-89ab-4def-8123-456789abcdef","parent":"fedcba98-7654-4321-8fed-cba987654321",)"
      R"("origin":"seal","time":"2026-11-28T18:00:00Z","sealed_time":"2026-12-01T18:00:00Z","file":"a.qcow2",)"
      R"("export":"vda","domain":"fedcba98-7654-4321-8fed-cba987654321","target":"vda","resealed":true,)"
      R"("signed_unproven":true})");
  put_record(expected, 1, 1, 2);
  put(expected, digest(1));
  put(expected, digest(2));
  put_record(expected, 2, 3, 2);
  put_record(expected, 3, 9, 1);
  put(expected, digest(3));
  put(expected, digest(4));
  put_record(expected, 255, 10, 0);
  put(expected, 1, 1);
  put(expected, digest(5));
  put(expected, sha256(expected));
  EXPECT_EQ(first_difference(read_file(path), expected), "");
}

TEST_F(ManifestTest, EveryFlippedByteIsRefused) {
  for (int round = 0; round < rounds(6); ++round) {
    const Draft manifest = any_manifest(40);
    write(manifest);
    const Bytes bytes = read_file(path);
    // Only the magic of a signature is checked here; verifying it needs a key.
    const std::size_t end =
        bytes.size() -
        (manifest.signature ? ManifestSignature::kKeyBytes + ManifestSignature::kSignatureBytes : 0);
    for (std::size_t at = 0; at < end; ++at) {
      Bytes flipped = bytes;
      flipped[at] ^= random.chance(50) ? std::byte{1} << random.below(8)
                                       : static_cast<std::byte>(random.between(1, 255));
      ASSERT_EQ(reading(flipped), Outcome::BadManifest)
          << "byte " << at << " of " << bytes.size() << ", now " << std::to_integer<int>(flipped[at]);
    }
  }
}

TEST_F(ManifestTest, TruncatedAtAnyLengthOrTooLong) {
  for (int round = 0; round < rounds(6); ++round) {
    const Draft manifest = any_manifest(40);
    write(manifest);
    const Bytes bytes = read_file(path);
    for (std::size_t length = 0; length < bytes.size(); ++length) {
      // What is left without its signature is a whole manifest, unsigned.
      const bool whole = manifest.signature && length == bytes.size() - kSignature;
      ASSERT_EQ(reading(Bytes(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length))),
                whole ? Outcome::Done : Outcome::BadManifest)
          << length << " of " << bytes.size();
    }
    for (const std::size_t more : {1, 40, 104, 70000}) {
      Bytes longer = bytes;
      longer.resize(bytes.size() + more);
      ASSERT_EQ(reading(longer), Outcome::BadManifest) << more << " bytes more";
    }
    // Itself once more.
    Bytes twice = bytes;
    twice.insert(twice.end(), bytes.begin(), bytes.end());
    ASSERT_EQ(reading(twice), Outcome::BadManifest);
  }
}

TEST_F(ManifestTest, HeadersThatCannotBe) {
  const auto with_end = [&](const std::string& json, std::uint64_t blocks) {
    Bytes bytes = header_bytes(json);
    put_end(bytes, blocks);
    return bytes;
  };
  ASSERT_EQ(reading(with_end(json_of("131073"), 3)), Outcome::Done) << "the test's own bytes";
  ASSERT_EQ(reading(with_end(json_of("0"), 0)), Outcome::Done);
  for (const char* const length :
       {"-1", "1.5", "\"131073\"", "null", "true", "[131073]", "{}", "9223372036854775808",
        "18446744073709551615", "1e300", "99999999999999999999999999"}) {
    for (const std::uint64_t blocks : {0UL, 1UL, 3UL, 1UL << 47U, 1UL << 48U}) {
      EXPECT_EQ(reading(with_end(json_of(length), blocks)), Outcome::BadManifest) << length;
    }
  }
  for (const char* const json : {"", " ", "{", "null", "[]", "\"text\"", "5", "{}", "\xff\xfe"}) {
    EXPECT_EQ(reading(with_end(json, 3)), Outcome::BadManifest) << json;
  }
  EXPECT_EQ(reading(with_end(json_of("131073") + " \x01", 3)), Outcome::BadManifest);
  // One field that is missing or invalid, beside all others as they should be.
  const std::map<std::string, std::string> valid{
      {"algorithm", R"("sha256")"}, {"block_size", "65536"}, {"length", "131073"},
      {"overlay", "true"},          {"origin", R"("pull")"}, {"layer", "\"" + std::string(kUuid) + "\""}};
  const auto with_field = [&](const std::string& field, const std::string& value) {
    std::map<std::string, std::string> fields = valid;
    fields[field] = value;
    std::string json;
    for (const auto& [name, text] : fields) {
      if (!text.empty()) json += (json.empty() ? "{\"" : ",\"") + name + "\":" + text;
    }
    return reading(with_end(json + "}", 3));
  };
  ASSERT_EQ(with_field("layer", ""), Outcome::Done);
  ASSERT_EQ(with_field("origin", R"("seal")"), Outcome::Done);
  const std::vector<std::pair<const char*, std::vector<const char*>>> invalid{
      {"algorithm", {"", R"("md5")", R"(["sha256"])"}},
      {"block_size", {"", "4096", "0", "65536.5"}},
      {"length", {""}},
      {"overlay", {"", "1"}},
      {"layer", {R"("x")", "7"}},
      {"since", {"{}"}},
      {"parent_root", {R"("sha256:00")", "5"}},
      {"origin", {"", R"("")", R"("Pull")", "0"}},
      {"time", {"5"}},
      {"sealed_time", {"5"}},
      {"file", {"[]"}},
      {"target", {"null"}},
      {"resealed", {"1", R"("true")"}},
      {"signed_unproven", {"0"}}};
  for (const auto& [field, values] : invalid) {
    for (const char* const value : values) {
      EXPECT_EQ(with_field(field, value), Outcome::BadManifest) << field << ": " << value;
    }
  }
  // Deep, and as long as it may be.
  EXPECT_EQ(reading(with_end(std::string(4096, '['), 3)), Outcome::BadManifest);
  EXPECT_EQ(reading(with_end(json_of("131073") + std::string(4096, ' '), 3)), Outcome::BadManifest);
  // A length of the header that is not there: nothing is allocated for it.
  for (const std::uint64_t length : {0UL, 4097UL, 0x7fffffffUL, 0xffffffffUL}) {
    Bytes bytes;
    put(bytes, "QCHNMF01");
    put(bytes, length, 4);
    put(bytes, json_of("131073"));
    EXPECT_EQ(reading(bytes), Outcome::BadManifest) << length;
  }
  EXPECT_EQ(reading(Bytes()), Outcome::BadManifest);
  EXPECT_EQ(reading(folder / "nosuch"), Outcome::Io);
  std::filesystem::create_directory(folder / "folder");
  EXPECT_NE(reading(folder / "folder"), Outcome::Done);
}

TEST_F(ManifestTest, RecordsThatCannotBe) {
  constexpr std::uint64_t kHuge = ~std::uint64_t{0};
  const std::uint64_t blocks = 1000;
  const std::string json = json_of(std::to_string(blocks * kDigestBlock));
  struct Record {
    unsigned kind;
    std::uint64_t first;
    std::uint64_t count;
  };
  using Records = std::vector<Record>;
  const auto bytes_of = [&](const Records& records, std::uint64_t end) {
    Bytes bytes = header_bytes(json);
    for (const Record& record : records) {
      put_record(bytes, record.kind, record.first, record.count);
      // As many digests as could ever be asked for here.
      const std::uint64_t digests = record.kind == 2 ? 0 : std::min<std::uint64_t>(record.count, 5000);
      for (std::uint64_t i = 0; i < digests * (record.kind == 3 ? 2 : 1); ++i) put(bytes, Digest(32));
    }
    put_end(bytes, end);
    return bytes;
  };
  for (const Records& good : {Records{}, Records{{2, 0, blocks}}, Records{{1, 0, 256}, {1, 256, 256}},
                              Records{{3, 999, 1}}, Records{{1, 5, 1}, {2, 6, 1}, {3, 7, 1}}}) {
    EXPECT_EQ(reading(bytes_of(good, blocks)), Outcome::Done);
    EXPECT_EQ(reading(bytes_of(good, blocks - 1)), Outcome::BadManifest) << "another number of blocks";
    EXPECT_EQ(reading(bytes_of(good, kHuge)), Outcome::BadManifest);
  }
  for (const Records& bad : {Records{{0, 0, 1}},
                             Records{{4, 0, 1}},
                             Records{{254, 0, 1}},
                             Records{{1, 0, 0}},
                             Records{{2, 0, 0}},
                             Records{{2, 0, blocks + 1}},
                             Records{{2, 1, blocks}},
                             Records{{2, blocks, 1}},
                             Records{{1, 0, 257}},
                             Records{{3, 0, 257}},
                             Records{{1, 0, kHuge}},
                             Records{{2, 0, kHuge}},
                             Records{{2, kHuge, 1}},
                             Records{{2, kHuge, kHuge}},
                             Records{{2, 2, kHuge - 1}},
                             Records{{1, kHuge, 2}},
                             Records{{2, 5, 5}, {2, 9, 1}},
                             Records{{2, 5, 5}, {2, 5, 5}},
                             Records{{2, 5, 5}, {1, 0, 1}},
                             Records{{1, 5, 1}, {3, 5, 1}}}) {
    EXPECT_EQ(reading(bytes_of(bad, blocks)), Outcome::BadManifest)
        << bad.back().kind << ", " << bad.back().first << ", " << bad.back().count;
  }
  // A disk of 2^62 bytes that says it is all zeros costs nothing.
  Bytes bytes = header_bytes(json_of(std::to_string(std::uint64_t{1} << 62)));
  put_record(bytes, 2, 0, std::uint64_t{1} << 46);
  put_end(bytes, std::uint64_t{1} << 46);
  EXPECT_EQ(reading(bytes), Outcome::Done);
}

// Whatever the file holds, it is read or refused.
TEST_F(ManifestTest, Garbage) {
  for (int round = 0; round < 300; ++round) {
    const Draft manifest = any_manifest(40);
    write(manifest);
    Bytes bytes = read_file(path);
    for (std::uint64_t i = random.between(1, 20); i > 0; --i) {
      bytes[random.chance(50) ? random.below(bytes.size())
                              : random.below(std::min<std::uint64_t>(bytes.size(), 300))] =
          static_cast<std::byte>(random.word());
    }
    const Outcome outcome = reading(bytes);
    EXPECT_TRUE(outcome == Outcome::BadManifest || outcome == Outcome::Done) << to_string(outcome);
  }
}

// The digests of every block of a chain of manifests, compared with maps of all of them, in any steps.
TEST_F(ManifestTest, TheDigestsOfAChain) {
  for (int round = 0; round < 40; ++round) {
    const std::size_t depth = random.between(1, 5);
    const Algorithm algorithm = random.one_of({Algorithm::Sha256, Algorithm::Xxh3_128});
    const std::size_t first_layer = random.below(3);
    std::vector<Draft> manifests;
    std::vector<std::shared_ptr<const Manifest>> files;
    for (std::size_t i = 0; i < depth; ++i) {
      Draft manifest = any_manifest(random.one_of<std::uint64_t>({3, 600}));
      while (manifest.header.algorithm != algorithm) manifest = any_manifest(600);
      write(manifest);
      const std::string own = folder / ("manifest" + std::to_string(i));
      std::filesystem::rename(path, own);
      files.push_back(std::make_shared<const Manifest>(own));
      manifests.push_back(std::move(manifest));
    }
    ChainDigests digests(files, first_layer);
    EXPECT_EQ(digests.top(), manifests.front().header);
    EXPECT_TRUE(digests.is_complete());
    // Past the end of the top too: zeros.
    const std::uint64_t end = manifests.front().header.blocks() + 10;
    for (std::uint64_t at = random.below(3); at < end;) {
      const std::uint64_t at_most = random.between(1, std::min<std::uint64_t>(end - at, 400));
      const ChainDigests::Run run = digests.next(at, at_most);
      ASSERT_GE(run.count, 1U);
      ASSERT_LE(run.count, at_most);
      for (std::uint64_t i = 0; i < run.count; ++i) {
        const std::uint64_t block = at + i;
        SCOPED_TRACE(testing::Message() << "block " << block);
        bool decided = false;
        for (std::size_t layer = 0; layer < depth && !decided; ++layer) {
          if (block >= manifests[layer].header.blocks()) {  // zeros, whatever is below
            ASSERT_TRUE(run.known);
            ASSERT_EQ(run.held, Held::None);
            ASSERT_EQ(run.whole, nullptr);
            decided = true;
            break;
          }
          const auto found = manifests[layer].blocks.find(block);
          if (found == manifests[layer].blocks.end()) continue;
          decided = true;
          ASSERT_TRUE(run.known);
          ASSERT_EQ(run.held, found->second.held);
          ASSERT_EQ(run.layer, first_layer + layer);
          ASSERT_EQ(run.whole != nullptr, run.held != Held::Zeros);
          ASSERT_EQ(run.part != nullptr, run.held == Held::Part);
          ASSERT_EQ(run.whole != nullptr ? run.whole[i] : Digest(), found->second.whole);
          ASSERT_EQ(run.part != nullptr ? run.part[i] : Digest(), found->second.part);
        }
        if (decided) continue;
        ASSERT_TRUE(run.known);
        ASSERT_EQ(run.held, Held::None);
        ASSERT_EQ(run.whole, nullptr);
      }
      at += random.chance(90) ? run.count : run.count + random.below(20);
    }
    digests.finish();
    // In one pass for all layers, or for some: as one by one.
    const std::size_t wanted = random.between(0, depth);
    const std::vector<Digest> roots = fold_roots(files, wanted);
    ASSERT_EQ(roots.size(), wanted);
    for (std::size_t layer = 0; layer < wanted; ++layer) {
      const ManifestHeader& header = files[layer]->header();
      ChainDigests alone({files.begin() + static_cast<std::ptrdiff_t>(layer), files.end()}, layer);
      DiskDigest disk(algorithm);
      alone.add_to(disk, 0, header.blocks(), header.length);
      EXPECT_EQ(roots[layer], disk.finish()) << "layer " << layer;
    }
  }
}

// If the path changes, the opened file is still read; if the file changes, it is detected.
TEST_F(ManifestTest, WhatIsReadLaterIsWhatWasOpened) {
  Draft manifest = any_manifest(600);
  while (manifest.blocks.size() < 10) manifest = any_manifest(600);
  write(manifest);
  const Bytes first = read_file(path);
  const auto opened = std::make_shared<const Manifest>(path);
  const auto reading_again = [&] {
    return outcome_of([&] {
      ChainDigests digests({opened}, 0);
      digests.next(0, 1);
      digests.finish();
    });
  };
  EXPECT_EQ(reading_again(), Outcome::Done);
  EXPECT_EQ(outcome_of([&] { fold_roots(std::vector{opened}, 1); }), Outcome::Done);

  // Another sound manifest, in place.
  Draft other = manifest;
  other.root.reset();
  other.header.checkpoint = "another";
  const std::string elsewhere = folder / "elsewhere";
  std::filesystem::rename(path, elsewhere);
  write(other);
  write_file(elsewhere, read_file(path));
  EXPECT_EQ(reading(elsewhere), Outcome::Done);
  EXPECT_EQ(reading_again(), Outcome::BadManifest);
  EXPECT_EQ(outcome_of([&] { fold_roots(std::vector{opened}, 1); }), Outcome::BadManifest);

  // By another file under the same name, which is not opened.
  write_file(elsewhere, first);
  std::filesystem::rename(path, elsewhere);
  EXPECT_EQ(reading_again(), Outcome::Done);
}

}  // namespace
}  // namespace qchain::tests
