// Headers: encode and decode are inverse, every limit is enforced, and QEMU's images are read.
#include "qcow2/header.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <set>

#include "qcow2/chain.h"
#include "qcow2/format.h"
#include "qcow2/image.h"
#include "tests/random.h"
#include "tests/support.h"

namespace qchain::tests {
namespace {

constexpr std::uint64_t kFileSize = std::uint64_t{1} << 40;

class HeaderTest : public RandomTest {
 protected:
  HostOffset any_table(const Header& header) {
    return HostOffset(align_down(random.below(kFileSize / 2), header.geometry().cluster_size()));
  }

  Header any_header() {
    Header h;
    h.cluster_bits = random.bits(14, kMaxClusterBits);
    h.virtual_size = random.any_size(42);
    if (random.chance(30)) h.incompatible_features |= kIncompatibleExtendedL2;
    if (random.chance(30)) h.incompatible_features |= kIncompatibleDirty | kIncompatibleCorrupt;
    if (random.chance(20)) h.incompatible_features |= random.word() << 8;
    if (random.chance(20)) h.incompatible_features |= kIncompatibleDataFile;
    if (random.chance(30)) {
      h.incompatible_features |= kIncompatibleCompression;
      h.compression_type = static_cast<std::uint8_t>(random.between(1, 255));
    }
    h.compatible_features = random.any_size();
    h.autoclear_features = random.any_size();
    if (!h.has_incompatible(kIncompatibleDataFile)) h.autoclear_features &= ~kAutoclearRawData;
    h.crypt_method = static_cast<std::uint32_t>(random.below(4));
    h.l1_entries = h.geometry().l1_entries() + random.below(100);
    h.l1_table = any_table(h);
    h.refcount_table = any_table(h);
    h.refcount_table_clusters = random.between(0, kMaxRefcountTableBytes / h.geometry().cluster_size());
    h.refcount_order = random.bits(0, kMaxRefcountOrder);
    h.snapshot_count = static_cast<std::uint32_t>(random.between(0, 65536));
    h.snapshots = any_table(h);
    if (random.chance(60)) h.backing_name = random.text(random.between(1, kMaxBackingName));
    if (random.chance(60)) h.backing_format = random.text(random.below(12));
    if (random.chance(30)) h.data_file_name = random.text(random.between(1, 100));
    if (random.chance(60)) h.identity = random.text(random.below(1025));
    std::set<std::uint32_t> ids;
    while (random.chance(50)) ids.insert(static_cast<std::uint32_t>(random.between(1, 1000000)));
    for (const std::uint32_t id : ids) {
      h.other_extensions.push_back({id, random.text(random.below(200))});
    }
    return h;
  }
};

TEST_F(HeaderTest, SurvivesTheDisk) {
  for (int round = 0; round < rounds(1000); ++round) {
    const Header header = any_header();
    const Bytes bytes = encode_header(header);
    ASSERT_EQ(bytes.size(), std::size_t{1} << header.cluster_bits);
    ASSERT_EQ(header_bytes(std::span(bytes).first(4096)), bytes.size());
    const Header read = decode_header(bytes, kFileSize, "image");
    ASSERT_EQ(read, header);
  }
}

// Whatever the bits: a header, or an Error; nothing else, and no byte outside is touched.
TEST_F(HeaderTest, DecodingIsTotal) {
  for (int round = 0; round < rounds(3000); ++round) {
    Bytes bytes = encode_header(any_header());
    bytes.resize(random.chance(50) ? random.below(300) : bytes.size());
    for (std::uint64_t hits = random.between(1, 12); hits > 0 && !bytes.empty(); --hits) {
      const std::size_t at = random.below(std::min<std::size_t>(bytes.size(), 300));
      if (at >= 4) bytes[at] = static_cast<std::byte>(random.word());
    }
    // Memory exactly as large, so that ASan sees a step past the end.
    bytes.shrink_to_fit();
    ASSERT_EQ(bytes.capacity(), bytes.size());
    try {
      const Header header = decode_header(bytes, random.any_size(41), "image");
      for (const std::string& name : header.features()) EXPECT_NE(name, "");
      EXPECT_LE(header.geometry().l1_entries(), header.l1_entries);
    } catch (const Error& error) {
      EXPECT_TRUE(error.outcome() == Outcome::Mismatch || error.outcome() == Outcome::Incomplete);
      EXPECT_TRUE(std::string(error.what()).starts_with("image: ")) << error.what();
    }
    EXPECT_LE(header_bytes(bytes), std::size_t{2} << 20);
  }
}

class HeaderLimitTest : public HeaderTest {
 protected:
  static Header valid() {
    Header h;
    h.virtual_size = 1 << 30;
    h.l1_entries = 2;
    h.l1_table = HostOffset(0x30000);
    h.refcount_table = HostOffset(0x10000);
    h.refcount_table_clusters = 1;
    h.backing_name = "base";
    h.backing_format = "qcow2";
    return h;
  }

  // What decoding says of the valid header after a change to its bytes.
  static Outcome with(const std::function<void(HeaderV3&)>& change, std::uint64_t file_size = 0x40000) {
    Bytes bytes = encode_header(valid());
    auto raw = decode_struct<HeaderV3>(bytes.data());
    change(raw);
    encode_struct(raw, bytes.data());
    return outcome_of([&] { decode_header(bytes, file_size, "image"); });
  }
};

TEST_F(HeaderLimitTest, EachLimitRefuses) {
  using V3 = HeaderV3;
  constexpr Outcome kFine = Outcome::Done;
  constexpr Outcome kCorrupt = Outcome::Mismatch;
  EXPECT_EQ(with([](V3&) {}), kFine);
  EXPECT_EQ(with([](V3& h) { h.v2.magic = kMagic + 1; }), kCorrupt);
  EXPECT_EQ(with([](V3& h) { h.v2.version = 1; }), Outcome::Incomplete);
  EXPECT_EQ(with([](V3& h) { h.v2.version = 4; }), Outcome::Incomplete);
  EXPECT_EQ(with([](V3& h) { h.v2.cluster_bits = 8; }), kCorrupt);
  EXPECT_EQ(with([](V3& h) { h.v2.cluster_bits = 22; }), kCorrupt);
  EXPECT_EQ(with([](V3& h) { h.v2.cluster_bits = 0x10010; }), kCorrupt);
  EXPECT_EQ(with([](V3& h) { h.header_length = 96; }), kCorrupt);
  EXPECT_EQ(with([](V3& h) { h.header_length = 108; }), kCorrupt) << "not a multiple of 8";
  EXPECT_EQ(with([](V3& h) { h.header_length = 65544; }), kCorrupt);
  EXPECT_EQ(with([](V3& h) { h.refcount_order = 6; }), kFine);
  EXPECT_EQ(with([](V3& h) { h.refcount_order = 7; }), kCorrupt);
  EXPECT_EQ(with([](V3& h) { h.compression_type = 1; }), kCorrupt) << "without its feature bit";
  EXPECT_EQ(with([](V3& h) { h.incompatible_features = kIncompatibleCompression; }), kCorrupt);
  EXPECT_EQ(with([](V3& h) {
              h.incompatible_features = kIncompatibleExtendedL2;
              h.v2.cluster_bits = 13;
            }),
            kCorrupt);
  // The L1 table.
  EXPECT_EQ(with([](V3& h) { h.v2.l1_entries = 1; }), kCorrupt) << "too short for the disk";
  EXPECT_EQ(with([](V3& h) { h.v2.l1_entries = (32 << 20) / 8; }, kFileSize), kFine);
  EXPECT_EQ(with([](V3& h) { h.v2.l1_entries = (32 << 20) / 8 + 1; }, kFileSize), kCorrupt);
  EXPECT_EQ(with([](V3& h) { h.v2.l1_offset = 0x30200; }), kCorrupt) << "not at a cluster";
  EXPECT_EQ(with([](V3& h) { h.v2.l1_offset = 0x40000; }), kCorrupt) << "past the file";
  EXPECT_EQ(with([](V3& h) { h.v2.l1_offset = ~std::uint64_t{0xFFFF}; }), kCorrupt);
  EXPECT_EQ(with([](V3& h) { h.v2.virtual_size = ~std::uint64_t{0}; }, kFileSize), kCorrupt);
  // The refcount table.
  EXPECT_EQ(with([](V3& h) { h.v2.refcount_table_clusters = 128; }, kFileSize), kFine);
  EXPECT_EQ(with([](V3& h) { h.v2.refcount_table_clusters = 129; }, kFileSize), kCorrupt);
  EXPECT_EQ(with([](V3& h) { h.v2.refcount_table_clusters = 0xFFFFFFFF; }, kFileSize), kCorrupt);
  EXPECT_EQ(with([](V3& h) { h.v2.refcount_table_offset = 0x10008; }), kCorrupt);
  EXPECT_EQ(with([](V3& h) { h.v2.refcount_table_offset = 0x40000; }), kFine)
      << "nothing that is read depends on refcounts";
  // Raw external data, in an image that has no data file.
  EXPECT_EQ(with([](V3& h) { h.autoclear_features = kAutoclearBitmaps | 0x100; }), kFine);
  EXPECT_EQ(with([](V3& h) { h.autoclear_features = kAutoclearRawData; }), kCorrupt);
  EXPECT_EQ(with([](V3& h) {
              h.autoclear_features = kAutoclearRawData;
              h.incompatible_features = kIncompatibleDataFile;
            }),
            kFine);
  // Snapshots.
  EXPECT_EQ(with([](V3& h) { h.v2.snapshot_count = 65536; }), kFine);
  EXPECT_EQ(with([](V3& h) { h.v2.snapshot_count = 65537; }), kCorrupt);
  EXPECT_EQ(with([](V3& h) { h.v2.snapshots_offset = 0x10000; }), kFine);
  EXPECT_EQ(with([](V3& h) { h.v2.snapshots_offset = 0x10010; }), kCorrupt)
      << "QEMU minds it although there is none";
  EXPECT_EQ(with([](V3& h) { h.v2.snapshots_offset = std::uint64_t{1} << 63; }), kCorrupt);
  // The backing name.
  EXPECT_EQ(with([](V3& h) { h.v2.backing_name_length = 0; }), kFine) << "no backing file";
  EXPECT_EQ(with([](V3& h) { h.v2.backing_name_length = 1023; }), kFine);
  EXPECT_EQ(with([](V3& h) { h.v2.backing_name_length = 1024; }), kCorrupt);
  EXPECT_EQ(with([](V3& h) { h.v2.backing_name_offset = 8; }), kCorrupt) << "inside the header";
  EXPECT_EQ(with([](V3& h) { h.v2.backing_name_offset = 0x10000 - 3; }), kCorrupt);
  EXPECT_EQ(with([](V3& h) { h.v2.backing_name_offset = 0x10000; }), kCorrupt);
  EXPECT_EQ(with([](V3& h) { h.v2.backing_name_offset = ~std::uint64_t{0}; }), kCorrupt);
}

// As QEMU has it: the area ends where it is full, at its end mark, or not at all.
TEST_F(HeaderLimitTest, ExtensionsThatLackAnEndRefuse) {
  Header plain = valid();
  plain.backing_name.clear();
  plain.backing_format.reset();
  for (std::uint64_t left = 0; left <= 16; ++left) {
    Bytes bytes = encode_header(plain);
    auto raw = decode_struct<HeaderV3>(bytes.data());
    raw.v2.backing_name_offset = sizeof(HeaderV3) + left;
    encode_struct(raw, bytes.data());
    const Outcome outcome = outcome_of([&] { decode_header(bytes, kFileSize, "image"); });
    EXPECT_EQ(outcome, left == 0 || left >= 8 ? Outcome::Done : Outcome::Mismatch) << left << " bytes";
  }
}

TEST_F(HeaderLimitTest, ACutL1TableIsCalledTruncated) {
  const Bytes bytes = encode_header(valid());
  try {
    decode_header(bytes, 0x30008, "image");
    FAIL() << "the L1 table has 16 bytes at 0x30000";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("truncated"), std::string::npos) << error.what();
  }
}

TEST_F(HeaderLimitTest, BadExtensionsRefuse) {
  // The first extension, backing format, begins right after the header.
  const auto extension = [](std::uint32_t id, std::uint32_t length) {
    Bytes bytes = encode_header(valid());
    encode_struct(ExtensionHeader{id, length}, bytes.data() + sizeof(HeaderV3));
    return outcome_of([&] { decode_header(bytes, kFileSize, "image"); });
  };
  EXPECT_EQ(extension(0x12345678, 5), Outcome::Done) << "unknown ones are skipped";
  EXPECT_EQ(extension(kExtensionBackingFormat, 0xFFFFFFFF), Outcome::Mismatch);
  EXPECT_EQ(extension(kExtensionBackingFormat, 65536), Outcome::Mismatch);
  EXPECT_EQ(extension(kExtensionBackingFormat, 25), Outcome::Mismatch) << "into the backing name";
  EXPECT_EQ(extension(kExtensionEnd, 16), Outcome::Done);
  EXPECT_EQ(extension(kExtensionEnd, 17), Outcome::Mismatch) << "QEMU does not open it";

  Header twice = valid();
  twice.other_extensions = {{77, "a"}, {77, "b"}};
  const Bytes bytes = encode_header(twice);
  EXPECT_EQ(outcome_of([&] { decode_header(bytes, kFileSize, "image"); }), Outcome::Mismatch);
}

TEST_F(HeaderLimitTest, AHeaderThatDoesNotFitItsClusterIsRefused) {
  Header header = valid();
  header.cluster_bits = 12;
  header.l1_entries = 512;
  header.backing_name = std::string(kMaxBackingName, 'x');
  header.identity = std::string(1024, 'y');
  const Bytes bytes = encode_header(header);
  EXPECT_EQ(bytes.size(), 4096U);
  EXPECT_EQ(decode_header(bytes, kFileSize, "image"), header);
  header.other_extensions = {{77, std::string(3000, 'z')}};
  EXPECT_EQ(outcome_of([&] { encode_header(header); }), Outcome::Usage);
}

TEST_F(HeaderTest, UnknownFeaturesAreNamedAndNotRead) {
  for (int round = 0; round < 200; ++round) {
    Header header = any_header();
    header.crypt_method = 0;
    header.compression_type = 0;
    header.incompatible_features = 0;
    EXPECT_TRUE(header.unsupported().empty());
    const unsigned bit = random.bits(5, 63);
    header.incompatible_features |= std::uint64_t{1} << bit;
    ASSERT_EQ(header.unsupported().size(), 1U);
    EXPECT_TRUE(header.unsupported().front().ends_with(' ' + std::to_string(bit)));
    EXPECT_TRUE(header.features().back().ends_with(' ' + std::to_string(bit)));
  }
}

// A header of 104 bytes is valid, has no compression type, and extensions follow it.
TEST_F(HeaderLimitTest, TheShortHeaderHasExtensionsToo) {
  const Bytes whole = encode_header(valid());
  Bytes bytes(whole.size());
  std::copy(whole.begin(), whole.begin() + kMinHeaderLengthV3, bytes.begin());
  std::copy(whole.begin() + sizeof(HeaderV3), whole.end(), bytes.begin() + kMinHeaderLengthV3);
  auto raw = decode_struct<HeaderV3>(bytes.data());
  const HeaderV2 v2 = raw.v2;
  raw.header_length = kMinHeaderLengthV3;
  raw.v2.backing_name_offset = v2.backing_name_offset - 8;
  std::memcpy(bytes.data(), &raw, kMinHeaderLengthV3);
  EXPECT_EQ(decode_header(bytes, kFileSize, "image"), valid());
}

class QemuHeaderTest : public HeaderTest {
 protected:
  // The header of a new image of 3 MiB and 1 sector, made by qemu-img create.
  Header create(const std::string& options, const std::vector<std::string>& more = {}) {
    const std::string path = folder / "image.qcow2";
    std::vector<std::string> command{"qemu-img", "create", "-q", "-f", "qcow2"};
    if (!options.empty()) command.insert(command.end(), {"-o", options});
    command.insert(command.end(), more.begin(), more.end());
    command.insert(command.end(), {path, std::to_string(kSize)});
    must(command);
    image.emplace(File::open_to_read(path));
    EXPECT_EQ(image->header().virtual_size, kSize);
    EXPECT_EQ(image->file_size(), std::filesystem::file_size(path));
    return image->header();
  }

  static constexpr std::uint64_t kSize = (3 << 20) + 512;
  Folder folder;
  std::optional<Image> image;
};

TEST_F(QemuHeaderTest, Plain) {
  const Header h = create("");
  EXPECT_EQ(h.version, 3U);
  EXPECT_EQ(h.cluster_bits, 16U);
  EXPECT_EQ(h.refcount_order, 4U);
  EXPECT_EQ(h.incompatible_features | h.autoclear_features, 0U);
  EXPECT_EQ(h.backing_name, "");
  EXPECT_FALSE(h.backing_format);
  EXPECT_FALSE(h.identity);
  EXPECT_EQ(h.l1_entries, 1U);
  EXPECT_NO_THROW(image->require_readable());
  // The extension that names the features is preserved.
  ASSERT_EQ(h.other_extensions.size(), 1U);
  EXPECT_EQ(h.other_extensions.front().id, kExtensionFeatureNames);
}

TEST_F(QemuHeaderTest, Version2WithABackingFile) {
  must({"qemu-img", "create", "-q", "-f", "raw", folder / "base.raw", "1M"});
  const Header h = create("compat=0.10,cluster_size=512", {"-b", "base.raw", "-F", "raw"});
  EXPECT_EQ(h.version, 2U);
  EXPECT_EQ(h.cluster_bits, 9U);
  EXPECT_EQ(h.refcount_order, 4U);
  EXPECT_EQ(h.backing_name, "base.raw");
  EXPECT_EQ(h.backing_format, "raw");
  EXPECT_EQ(h.l1_entries, h.geometry().l1_entries());
  EXPECT_NO_THROW(image->require_readable());
}

TEST_F(QemuHeaderTest, ExtendedL2) {
  const Header h = create("extended_l2=on,cluster_size=2M");
  EXPECT_TRUE(h.geometry().extended_l2());
  EXPECT_EQ(h.geometry().unit(), 65536U);
  EXPECT_EQ(h.features(), std::vector<std::string>{"extended L2"});
  EXPECT_NO_THROW(image->require_readable());
}

TEST_F(QemuHeaderTest, Zstd) {
  const Header h = create("compression_type=zstd");
  EXPECT_EQ(h.compression(), Compression::Zstd);
  EXPECT_EQ(h.features(), std::vector<std::string>{"zstd"});
  EXPECT_NO_THROW(image->require_readable());
}

TEST_F(QemuHeaderTest, LazyRefcountsAndNarrowRefcounts) {
  const Header h = create("lazy_refcounts=on");
  EXPECT_EQ(h.compatible_features, kCompatibleLazyRefcounts);
  EXPECT_EQ(h.features(), std::vector<std::string>{"lazy refcounts"});
  EXPECT_NO_THROW(image->require_readable());
  EXPECT_EQ(create("refcount_bits=1").refcount_order, 0U);
  EXPECT_EQ(create("refcount_bits=64").refcount_order, 6U);
}

TEST_F(QemuHeaderTest, AnExternalDataFileIsNamedAndNotRead) {
  const Header h = create("data_file=" + folder / "data.raw" + ",data_file_raw=on");
  EXPECT_EQ(h.data_file_name, folder / "data.raw");
  EXPECT_EQ(h.features(), (std::vector<std::string>{"external data file", "raw external data"}));
  EXPECT_EQ(outcome_of([&] { image->require_readable(); }), Outcome::Incomplete);
}

// LUKS differs from it by one number; QEMU takes seconds to create a LUKS image.
TEST_F(QemuHeaderTest, EncryptionIsNamedAndNotRead) {
  Header h = create("encryption=on,encrypt.key-secret=s", {"--object", "secret,id=s,data=secret"});
  EXPECT_EQ(h.features(), std::vector<std::string>{"AES encryption"});
  EXPECT_EQ(outcome_of([&] { image->require_readable(); }), Outcome::Incomplete);
  h.crypt_method = kCryptLuks;
  EXPECT_EQ(h.unsupported(), std::vector<std::string>{"LUKS encryption"});
  h.crypt_method = 7;
  EXPECT_EQ(h.unsupported(), std::vector<std::string>{"encryption method 7"});
}

TEST_F(QemuHeaderTest, SnapshotsAndBitmapsAreSeen) {
  create("");
  const std::string path = folder / "image.qcow2";
  must({"qemu-img", "snapshot", "-c", "first", path});
  must({"qemu-img", "bitmap", "--add", path, "b0"});
  const Image image_now(File::open_to_read(path));
  const Header& h = image_now.header();
  EXPECT_EQ(h.snapshot_count, 1U);
  EXPECT_EQ(h.autoclear_features, kAutoclearBitmaps);
  EXPECT_EQ(h.features(), std::vector<std::string>{"1 internal snapshots"});
  EXPECT_TRUE(std::ranges::any_of(h.other_extensions, [](const Extension& extension) {
    return extension.id == kExtensionBitmaps && extension.data.size() == 24;
  }));
}

// QEMU reads the headers that we write, and keeps our extension when it rewrites them.
TEST_F(QemuHeaderTest, QemuPreservesOurExtension) {
  Identity identity;
  identity.overlay = true;
  identity.id = random_uuid();
  identity.length = kSize;
  MemoryDevice device(Bytes(1 << 20), {{guest_range(0, 1 << 20), Kind::Inherit}}, 1 << 20);
  must({"qemu-img", "create", "-q", "-f", "qcow2", folder / "a.qcow2", "1M"});
  must({"qemu-img", "create", "-q", "-f", "qcow2", folder / "a much longer name.qcow2", "1M"});
  const std::string path = folder / "image.qcow2";
  {
    const File file = create_file(path);
    LayerOptions options;
    options.position = Position::Overlay;
    Header header = write_layer(device, file, options).header;
    header.backing_name = "a.qcow2";
    header.backing_format = "qcow2";
    header.identity = encode_identity(identity);
    write_header(file, header);
  }
  must({"qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "a much longer name.qcow2", path});
  const Image rebased(File::open_to_read(path));
  EXPECT_EQ(rebased.header().backing_name, "a much longer name.qcow2");
  EXPECT_EQ(rebased.identity(), identity);
}

TEST_F(HeaderTest, WhatIsNotAnImageIsRefused) {
  const Folder folder;
  for (const std::size_t size : {0, 1, 3, 71, 72, 512, 5000}) {
    Bytes bytes(size);
    random.fill(bytes);
    if (size > 0) bytes[0] = std::byte{0};
    write_file(folder / "file", bytes);
    EXPECT_EQ(outcome_of([&] { Image(File::open_to_read(folder / "file")); }), Outcome::Mismatch) << size;
  }
}

}  // namespace
}  // namespace qchain::tests
