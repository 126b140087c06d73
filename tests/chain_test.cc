// Chains that QEMU made, read as QEMU reads them; and chains that must not be opened.
#include "qcow2/chain.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <optional>
#include <thread>

#include "qcow2/format.h"
#include "tests/random.h"
#include "tests/support.h"
#include "verify/device_digest.h"

namespace qchain::tests {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;

std::string text(std::uint64_t value) { return std::to_string(value); }

// Random chains are in tests/differential.
class QemuChainTest : public RandomTest {
 protected:
  Folder folder;
};

// An answer has a bounded number of pieces, whatever the layers look like: 32768 subclusters, every third of
// which is in the top layer and every second in the middle one.
TEST_F(QemuChainTest, AFragmentedChainIsMappedInBoundedAnswers) {
  constexpr std::uint64_t kUnit = 512;
  constexpr std::uint64_t kSize = 32768 * kUnit;
  const auto every = [](std::uint64_t nth) {
    Extents extents;
    for (std::uint64_t i = 0; i < kSize / kUnit; ++i) {
      append(extents, {guest_range(i * kUnit, kUnit), i % nth == 0 ? Kind::Data : Kind::Inherit});
    }
    return extents;
  };
  const Bytes bytes(kSize, std::byte{1});
  LayerOptions options;
  options.cluster_bits = 14;
  options.extended_l2 = true;
  std::string below;
  for (const std::uint64_t nth : {1, 2, 3}) {
    MemoryDevice device(bytes, every(nth), kSize);
    options.position = nth == 1 ? Position::Bottom : Position::Overlay;
    write_image(device, folder / text(nth), options, below);
    below = text(nth);
  }

  const auto chain = Chain::open(folder / "3", ImageFormat::Qcow2, {});
  const std::size_t answer = chain->map(guest_range(0, kSize)).size();
  const std::vector<Mapping> map = whole_map(*chain);
  EXPECT_LT(answer, map.size()) << "the first answer is not the whole";
  for (const Mapping& mapping : map) {
    ASSERT_EQ(mapping.kind, Kind::Data);
    for (std::uint64_t at = mapping.range.begin.bytes(); at < mapping.range.end.bytes(); at += kUnit) {
      const std::uint64_t i = at / kUnit;
      ASSERT_EQ(mapping.layer, i % 3 == 0 ? 0U : i % 2 == 0 ? 1U : 2U) << i;
    }
  }
  EXPECT_EQ(first_difference(content_of(*chain), bytes), "");
}

// A change or two in each of 300 layers: all of them have to be searched, in reasonable time.
TEST_F(QemuChainTest, ChainsHundredsDeep) {
  constexpr std::size_t kDepth = 300;
  constexpr std::uint64_t kUnit = 4096;
  constexpr std::uint64_t kSize = 400 * kUnit;
  Bytes disk(kSize);
  LayerOptions options;
  options.cluster_bits = 12;
  std::string below;
  for (std::size_t i = 0; i < kDepth; ++i) {
    Extents extents;
    for (GuestOffset at(0); at < GuestOffset(kSize);) {
      // In the bottom layer, half of the disk; above, a cluster in a hundred.
      const bool changed = random.chance(i == 0 ? 50 : 1);
      const GuestRange range = guest_range(at.bytes(), kUnit);
      const std::span<std::byte> bytes = std::span(disk).subspan(at.bytes(), kUnit);
      const bool zero = changed && random.chance(30);
      if (changed) random.fill(bytes);
      if (zero) std::ranges::fill(bytes, std::byte{0});
      append(extents, {range, zero ? Kind::Zero : changed ? Kind::Data : Kind::Inherit});
      at = range.end;
    }
    MemoryDevice device(disk, extents, kSize);
    options.position = i == 0 ? Position::Bottom : Position::Overlay;
    write_image(device, folder / text(i), options, below);
    below = text(i);
  }

  const auto begun = std::chrono::steady_clock::now();
  const auto chain = Chain::open(folder / below, ImageFormat::Qcow2, {});
  EXPECT_EQ(chain->layers().size(), kDepth);
  MemoryDevice flat(disk, {{guest_range(0, kSize), Kind::Data}}, kSize);
  EXPECT_EQ(digest_of(*chain, kSize, {}), digest_of(flat, kSize, {}));
  EXPECT_EQ(first_difference(content_of(*chain), disk), "");
  EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(20));
  EXPECT_EQ(first_difference(content_by_qemu(folder / below), disk), "");
}

// base 4M <- middle 1M <- top 4M: above 1M there are zeros, never the base's data.
TEST_F(QemuChainTest, EveryLayerIsClippedAtItsEnd) {
  must({"qemu-img", "create", "-q", "-f", "qcow2", folder / "base", "4M"});
  must({"qemu-io", "-f", "qcow2", "-c", "write -P 9 0 4M", folder / "base"});
  must({"qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", folder / "middle", "1M"});
  must({"qemu-img", "create", "-q", "-f", "qcow2", "-b", "middle", "-F", "qcow2", folder / "top", "4M"});
  const auto chain = Chain::open(folder / "top", ImageFormat::Qcow2, {});
  Bytes expected(4 * kMiB);
  std::ranges::fill(std::span(expected).first(kMiB), std::byte{9});
  EXPECT_EQ(first_difference(content_of(*chain), expected), "");
  EXPECT_EQ(first_difference(content_by_qemu(folder / "top"), expected), "");
  EXPECT_EQ(collect(extents_of(*chain)),
            (Extents{{guest_range(0, kMiB), Kind::Data}, {guest_range(kMiB, 3 * kMiB), Kind::Zero}}));
}

// Which files an image may make us open.
class PolicyTest : public RandomTest {
 protected:
  PolicyTest() {
    for (const char* const directory : {"tree", "tree/deeper", "other"}) {
      std::filesystem::create_directory(folder / directory);
    }
    for (const char* const base :
         {"tree/base.qcow2", "tree/deeper/base.qcow2", "other/base.qcow2", "tree/a:b.qcow2"}) {
      layer(base, "");
    }
  }

  // A layer with any backing name and format, as an attacker writes it.
  void layer(const std::string& name, const std::string& backing, std::optional<std::string> format = "qcow2",
             std::optional<Identity> identity = {}) {
    MemoryDevice device(Bytes(4096), {{guest_range(0, 4096), Kind::Inherit}}, 4096);
    const File file = create_file(folder / name);
    LayerOptions options;
    options.cluster_bits = 12;
    Header header = write_layer(device, file, options).header;
    header.backing_name = backing;
    header.backing_format = backing.empty() ? std::nullopt : std::move(format);
    if (identity) header.identity = encode_identity(*identity);
    write_header(file, header);
  }

  Outcome open(const std::string& name, const std::vector<std::string>& roots = {}) {
    OpenOptions options;
    options.backing_roots = roots;
    return outcome_of([&] { Chain::open(folder / name, ImageFormat::Qcow2, options); });
  }
  Outcome on(const std::string& backing, std::optional<std::string> format = "qcow2",
             const std::vector<std::string>& roots = {}) {
    layer("tree/top.qcow2", backing, std::move(format));
    return open("tree/top.qcow2", roots);
  }

  Folder folder;
};

TEST_F(PolicyTest, FollowsNamesBelowTheTopImagesDirectory) {
  EXPECT_EQ(on("base.qcow2"), Outcome::Done);
  EXPECT_EQ(on("./base.qcow2"), Outcome::Done);
  EXPECT_EQ(on("deeper/base.qcow2"), Outcome::Done);
  EXPECT_EQ(on("deeper/../base.qcow2"), Outcome::Done);
  EXPECT_EQ(on("../tree/base.qcow2"), Outcome::Done);
  EXPECT_EQ(on(folder / "tree/base.qcow2"), Outcome::Done);
  EXPECT_EQ(on("./a:b.qcow2"), Outcome::Done);
  // A relative name counts from the folder of the layer that records it.
  layer("tree/deeper/middle.qcow2", "../base.qcow2");
  EXPECT_EQ(on("deeper/middle.qcow2"), Outcome::Done);
}

TEST_F(PolicyTest, RefusesWhatIsOutside) {
  EXPECT_EQ(on("../other/base.qcow2"), Outcome::Incomplete);
  EXPECT_EQ(on(folder / "other/base.qcow2"), Outcome::Incomplete);
  EXPECT_EQ(on("../other/base.qcow2", "raw"), Outcome::Incomplete);
  std::filesystem::create_symlink("../other/base.qcow2", folder / "tree/link.qcow2");
  EXPECT_EQ(on("link.qcow2"), Outcome::Incomplete) << "what a link leads to counts";
  std::filesystem::create_directory_symlink("../other", folder / "tree/elsewhere");
  EXPECT_EQ(on("elsewhere/base.qcow2"), Outcome::Incomplete);
  // A folder whose name only begins alike.
  std::filesystem::create_directory(folder / "tree2");
  layer("tree2/base.qcow2", "");
  EXPECT_EQ(on("../tree2/base.qcow2"), Outcome::Incomplete);
  EXPECT_EQ(on("../tree2/base.qcow2", "qcow2", {folder / "other"}), Outcome::Incomplete);
  // Not the folder of the middle layer: the folder of the top image.
  layer("other/middle.qcow2", "base.qcow2");
  layer("tree/deeper/middle.qcow2", "../base.qcow2");
  layer("tree/deeper/top.qcow2", "middle.qcow2");
  EXPECT_EQ(open("tree/deeper/top.qcow2"), Outcome::Incomplete);
  EXPECT_EQ(open("tree/deeper/top.qcow2", {folder / "tree"}), Outcome::Done);
  // An allowed root is enough.
  EXPECT_EQ(on("../other/base.qcow2", "qcow2", {folder / "other"}), Outcome::Done);
  EXPECT_EQ(on("link.qcow2", "qcow2", {folder / "other"}), Outcome::Done);
}

TEST_F(PolicyTest, RefusesWhatIsNotAPlainPath) {
  for (const char* const name :
       {"nbd://127.0.0.1:1/x", "nbd+unix:///x?socket=s", "json:{}", "json:{\"driver\":\"null-co\"}",
        "file:base.qcow2", "ssh:x", "a:b.qcow2", ":", "fat:rw:.", "https://x/y"}) {
    EXPECT_EQ(on(name), Outcome::Incomplete) << name;
    EXPECT_EQ(on(name, "raw"), Outcome::Incomplete) << name;
    EXPECT_TRUE(has_protocol(name)) << name;
  }
  EXPECT_FALSE(has_protocol("x/a:b"));
}

TEST_F(PolicyTest, NeverGuessesAFormat) {
  EXPECT_EQ(on("base.qcow2", std::nullopt), Outcome::Incomplete);
  EXPECT_EQ(on("base.qcow2", "vmdk"), Outcome::Incomplete);
  EXPECT_EQ(on("base.qcow2", ""), Outcome::Incomplete);
  // The given format is used: a qcow2 image read as raw is its bytes.
  EXPECT_EQ(on("base.qcow2", "raw"), Outcome::Done);
  write_file(folder / "tree/base.raw", Bytes(4096));
  EXPECT_EQ(on("base.raw", "raw"), Outcome::Done);
  EXPECT_EQ(on("base.raw", "qcow2"), Outcome::Mismatch);
}

TEST_F(PolicyTest, WhatIsNotThereIsAnIoError) {
  EXPECT_EQ(open("tree/absent.qcow2"), Outcome::Io);
  EXPECT_EQ(open("absent/top.qcow2"), Outcome::Io);
  EXPECT_EQ(on("absent.qcow2"), Outcome::Io);
  EXPECT_EQ(on("deeper"), Outcome::Io) << "a folder";
  ASSERT_EQ(mkfifo((folder / "tree/pipe").c_str(), 0600), 0);
  EXPECT_EQ(on("pipe"), Outcome::Io) << "and does not wait for a writer";
  EXPECT_EQ(on("base.qcow2", "qcow2", {folder / "absent"}), Outcome::Io);
}

TEST_F(PolicyTest, LoopsEnd) {
  EXPECT_EQ(on("top.qcow2"), Outcome::Mismatch) << "on itself";
  EXPECT_EQ(on("top.qcow2", "raw"), Outcome::Mismatch);
  layer("tree/a.qcow2", "b.qcow2");
  layer("tree/b.qcow2", "a.qcow2");
  EXPECT_EQ(open("tree/a.qcow2"), Outcome::Mismatch);
  EXPECT_EQ(on("a.qcow2"), Outcome::Mismatch) << "a loop that does not hold the top";
  std::filesystem::create_hard_link(folder / "tree/top.qcow2", folder / "tree/other name.qcow2");
  EXPECT_EQ(on("other name.qcow2"), Outcome::Mismatch);
  const Survey found = survey(folder / "tree/a.qcow2", ImageFormat::Qcow2, {});
  EXPECT_EQ(found.layers.size(), 2U) << "what could be opened is there to be shown";
  ASSERT_EQ(found.problems.size(), 1U);
  EXPECT_EQ(found.problems.front().layer, 2U);
}

TEST_F(PolicyTest, AnExternalDataFileIsFollowedWhereItIsAllowed) {
  for (const char* const raw : {"on", "off"}) {
    const std::string image = folder / "tree/external.qcow2";
    must({"qemu-img", "create", "-q", "-f", "qcow2", "-o",
          "data_file=" + folder / "tree/data.raw" + ",data_file_raw=" + raw, image, "4096"});
    must({"qemu-io", "-f", "qcow2", "-c", "write -P 3 512 1024", image});
    EXPECT_EQ(open("tree/external.qcow2"), Outcome::Incomplete);
    EXPECT_EQ(on("external.qcow2"), Outcome::Incomplete) << "in the middle of a chain too";

    OpenOptions options;
    options.allow_data_file = true;
    Bytes expected(4096);
    std::ranges::fill(std::span(expected).subspan(512, 1024), std::byte{3});
    const auto chain = Chain::open(folder / "tree/top.qcow2", ImageFormat::Qcow2, options);
    EXPECT_EQ(first_difference(content_of(*chain), expected), "");
  }
}

// The name of a data file is as untrusted as that of a backing file.
TEST_F(PolicyTest, AnExternalDataFileIsBelowTheTopImagesDirectory) {
  must({"qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=" + folder / "other/data.raw",
        folder / "tree/external.qcow2", "4096"});
  OpenOptions options;
  options.allow_data_file = true;
  const auto opened = [&] {
    return outcome_of([&] { Chain::open(folder / "tree/external.qcow2", ImageFormat::Qcow2, options); });
  };
  EXPECT_EQ(opened(), Outcome::Incomplete);
  options.backing_roots = {folder / "other"};
  EXPECT_EQ(opened(), Outcome::Done);
  std::filesystem::remove(folder / "other/data.raw");
  EXPECT_EQ(opened(), Outcome::Io);
}

// As between QEMU's tools: a reader locks out writers, and a writer locks out readers.
TEST_F(PolicyTest, QemusImageLocksAreHonoured) {
  ASSERT_EQ(on("base.qcow2"), Outcome::Done);
  const auto write_by_qemu = [&](const std::string& name, const std::string& then) {
    return run({"qemu-io", "-f", "qcow2", "-c", "write 0 512", "-c", then, folder / name}).status;
  };
  {
    const auto chain = Chain::open(folder / "tree/top.qcow2", ImageFormat::Qcow2, {});
    EXPECT_NE(write_by_qemu("tree/top.qcow2", "sleep 0"), 0);
    EXPECT_NE(write_by_qemu("tree/base.qcow2", "sleep 0"), 0);
    EXPECT_EQ(open("tree/top.qcow2"), Outcome::Done) << "two readers are welcome";
  }
  EXPECT_EQ(write_by_qemu("tree/top.qcow2", "sleep 0"), 0) << "and no longer";

  std::atomic<bool> ended{false};
  std::jthread writer([&] {
    EXPECT_EQ(write_by_qemu("tree/top.qcow2", "sleep 1500"), 0);
    ended = true;
  });
  // A writer that is starting may find us reading for a moment; QEMU would then give up.
  OpenOptions force;
  force.force_share = true;
  bool refused = false;
  while (!refused && !ended) {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    refused = open("tree/top.qcow2") == Outcome::Io;
  }
  EXPECT_TRUE(refused);
  EXPECT_NO_THROW(Chain::open(folder / "tree/top.qcow2", ImageFormat::Qcow2, force));
}

TEST_F(PolicyTest, AChainKnowsItsFiles) {
  ASSERT_EQ(on("base.qcow2"), Outcome::Done);
  const auto chain = Chain::open(folder / "tree/top.qcow2", ImageFormat::Qcow2, {});
  std::filesystem::create_hard_link(folder / "tree/base.qcow2", folder / "tree/alias");
  EXPECT_TRUE(chain->contains(File::open_to_read(folder / "tree/alias").identity()));
  EXPECT_TRUE(chain->contains(File::open_to_read(folder / "tree/top.qcow2").identity()));
  EXPECT_FALSE(chain->contains(File::open_to_read(folder / "other/base.qcow2").identity()));
}

TEST_F(PolicyTest, AChainKnowsItsDataFiles) {
  const std::string data = folder / "tree/data.raw";
  must({"qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=" + data, folder / "tree/base.qcow2",
        "4096"});
  layer("tree/top.qcow2", "base.qcow2");
  OpenOptions options;
  options.allow_data_file = true;
  const auto chain = Chain::open(folder / "tree/top.qcow2", ImageFormat::Qcow2, options);
  EXPECT_TRUE(chain->contains(File::open_to_read(data).identity())) << "or --force would replace it";
}

class IdentityChainTest : public PolicyTest {
 protected:
  static Identity identity(const std::string& parent_id, const std::string& checkpoint = "",
                           const std::string& since = "") {
    Identity identity;
    identity.overlay = !parent_id.empty();
    identity.id = random_uuid();
    identity.parent_id = parent_id;
    identity.checkpoint = checkpoint;
    identity.since = since;
    identity.length = 4096;
    return identity;
  }
};

TEST_F(IdentityChainTest, LinksThatDoNotMatchAreFindings) {
  const auto open = [&](const std::string& name) {
    const auto chain = Chain::open(folder / name, ImageFormat::Qcow2, {});
    return chain->link_problems().empty() ? Outcome::Done : chain->link_problems().front().outcome;
  };
  const Identity full = identity("", "c1");
  const Identity first = identity(full.id, "c2", "c1");
  const Identity second = identity(first.id, "c3", "c2");
  layer("tree/full.qcow2", "", {}, full);
  layer("tree/first.qcow2", "full.qcow2", "qcow2", first);
  layer("tree/second.qcow2", "first.qcow2", "qcow2", second);
  EXPECT_EQ(open("tree/second.qcow2"), Outcome::Done);

  layer("tree/missing.qcow2", "full.qcow2", "qcow2", second);
  EXPECT_EQ(open("tree/missing.qcow2"), Outcome::Mismatch) << "a layer is missing";
  layer("tree/flat.qcow2", "", {}, first);
  EXPECT_EQ(open("tree/flat.qcow2"), Outcome::Mismatch) << "a flat rebase";
  layer("tree/anonymous.qcow2", "base.qcow2", "qcow2", first);
  EXPECT_EQ(open("tree/anonymous.qcow2"), Outcome::Mismatch) << "a parent without identity";
  layer("tree/since.qcow2", "full.qcow2", "qcow2", identity(full.id, "c3", "c2"));
  EXPECT_EQ(open("tree/since.qcow2"), Outcome::Mismatch) << "changes since another checkpoint";
  layer("tree/differential.qcow2", "full.qcow2", "qcow2", identity(full.id, "c3", "c1"));
  EXPECT_EQ(open("tree/differential.qcow2"), Outcome::Done);
  layer("tree/put on.qcow2", "base.qcow2", "qcow2", full);
  EXPECT_EQ(open("tree/put on.qcow2"), Outcome::Mismatch) << "a full layer on something";
  layer("tree/new guest.qcow2", "second.qcow2");
  EXPECT_EQ(open("tree/new guest.qcow2"), Outcome::Done) << "an overlay of QEMU's on ours";

  const Survey found = survey(folder / "tree/missing.qcow2", ImageFormat::Qcow2, {});
  EXPECT_EQ(found.layers.size(), 2U);
  ASSERT_EQ(found.problems.size(), 1U);
  EXPECT_EQ(found.problems.front().layer, 0U);
  EXPECT_EQ(found.problems.front().kind, ProblemKind::Link);
  EXPECT_TRUE(found.is_whole());
  EXPECT_NE(found.problems.front().message.find(first.id), std::string::npos);
  const auto chain = Chain::open(folder / "tree/missing.qcow2", ImageFormat::Qcow2, {});
  EXPECT_EQ(content_of(*chain).size(), chain->size()) << "the bytes are there";
  ASSERT_EQ(chain->link_problems().size(), 1U);
  EXPECT_EQ(chain->link_problems().front().message, found.problems.front().message);
}

// A thousand layers that differ in their headers alone: one is written, the others are its copies.
TEST_F(PolicyTest, TheDepthIsCapped) {
  layer("tree/0", "");
  const Bytes bottom = read_file(folder / "tree/0");
  Header header = Image(File::open_to_read(folder / "tree/0")).header();
  header.backing_format = "qcow2";
  for (std::size_t i = 1; i <= kMaxChainDepth; ++i) {
    const File file = create_file(folder / "tree/" + text(i));
    file.write(HostOffset(0), bottom);
    header.backing_name = text(i - 1);
    write_header(file, header);
  }
  EXPECT_EQ(open("tree/" + text(kMaxChainDepth - 1)), Outcome::Done);
  EXPECT_EQ(open("tree/" + text(kMaxChainDepth)), Outcome::Incomplete);
}

class DamageTest : public QemuChainTest {
 protected:
  static void poke(const std::string& path, std::uint64_t offset, std::uint64_t value) {
    Bytes word(8);
    encode_struct(Be64(value), word.data());
    const int descriptor = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
    File(descriptor, path).write(HostOffset(offset), word);
  }
  static std::uint64_t peek(const std::string& path, std::uint64_t offset) {
    Bytes word(8);
    File::open_to_read(path).read(HostOffset(offset), word);
    return decode_struct<Be64>(word.data());
  }

  static Outcome reading(const std::string& path) {
    return outcome_of([&] { content_of(*Chain::open(path, ImageFormat::Qcow2, {})); });
  }
  static Outcome mapping(const std::string& path) {
    return outcome_of([&] { whole_map(*Chain::open(path, ImageFormat::Qcow2, {})); });
  }
};

TEST_F(DamageTest, CorruptTablesAreMismatches) {
  const std::string path = folder / "image";
  const auto fresh = [&] {
    must({"qemu-img", "create", "-q", "-f", "qcow2", path, "1M"});
    must({"qemu-io", "-f", "qcow2", "-c", "write -P 5 0 256k", path});
  };
  fresh();
  ASSERT_EQ(reading(path), Outcome::Done);
  const std::uint64_t l1 = Image(File::open_to_read(path)).header().l1_table.bytes();
  const std::uint64_t l2 = decode_l1(peek(path, l1)).table.bytes();
  const std::uint64_t file_size = std::filesystem::file_size(path);
  const std::uint64_t past = align_up(file_size, 65536);
  struct Case {
    const char* what;
    std::uint64_t offset;
    std::uint64_t value;
  };
  for (const Case& c : std::vector<Case>{
           {"an L2 table past the file", l1, kCopied | past},
           {"an L2 table far past the file", l1, kCopied | 0x00FFFFFFFFFF0000},
           {"an L2 table off its cluster", l1, kCopied | (l2 + 512)},
           {"reserved bits in L1", l1, kCopied | l2 | 1},
           {"reserved bits in L2", l2 + 8, kCopied | 0x50000 | 2},
           {"a cluster past the file", l2 + 8, kCopied | past},
           {"a cluster off its border", l2 + 8, kCopied | (peek(path, l2) & ~kCopied) | 512},
           {"a stream past the file", l2 + 8, std::uint64_t{1} << 62 | past},
       }) {
    fresh();
    poke(path, c.offset, c.value);
    EXPECT_EQ(reading(path), Outcome::Mismatch) << c.what;
    EXPECT_EQ(mapping(path), Outcome::Mismatch) << c.what;
  }
  // An invalid stream is found when it is read.
  fresh();
  poke(path, l2 + 8, std::uint64_t{1} << 62 | (peek(path, l2) & ~kCopied));
  EXPECT_EQ(mapping(path), Outcome::Done);
  EXPECT_EQ(reading(path), Outcome::Mismatch);
  // A truncated file.
  for (const std::uint64_t size : {l2 + 100, l1 + 4, std::uint64_t{50}, file_size - 65536 - 7}) {
    fresh();
    std::filesystem::resize_file(path, size);
    EXPECT_EQ(reading(path), Outcome::Mismatch) << size;
  }
}

// The disk ends before the cut: every entry that it needs is there, and QEMU reads it too.
TEST_F(DamageTest, AnL2TableThatIsTruncatedPastTheDisksEnd) {
  const std::string path = folder / "image";
  must({"qemu-img", "create", "-q", "-f", "qcow2", path, "64M"});
  must({"qemu-io", "-d", "unmap", "-f", "qcow2", "-c", "write 0 64k", "-c", "discard 0 64k", path});
  std::filesystem::resize_file(path, 0x48000);
  must({"qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0 0 64M", path});
  EXPECT_EQ(mapping(path), Outcome::Done);
  // 1024 entries are needed, and 1023 of them left.
  std::filesystem::resize_file(path, 0x40000 + 1023 * 8);
  EXPECT_EQ(mapping(path), Outcome::Mismatch);
}

TEST_F(DamageTest, AnUnalignedPreallocationIsRefusedAsByQemu) {
  const std::string path = folder / "image";
  must({"qemu-img", "create", "-q", "-f", "qcow2", path, "1M"});
  must({"qemu-io", "-f", "qcow2", "-c", "write 0 64k", path});
  const std::uint64_t l1 = Image(File::open_to_read(path)).header().l1_table.bytes();
  poke(path, decode_l1(peek(path, l1)).table.bytes(), 0x8000000000052a01);
  EXPECT_NE(run({"qemu-io", "-r", "-f", "qcow2", "-c", "read 0 64k", path}).status, 0);
  EXPECT_EQ(reading(path), Outcome::Mismatch);
}

TEST_F(DamageTest, ALostRefcountTableDoesNotPreventReading) {
  const std::string path = folder / "image";
  must({"qemu-img", "create", "-q", "-f", "qcow2", path, "1M"});
  must({"qemu-io", "-f", "qcow2", "-c", "write -P 7 0 256k", path});
  poke(path, 48, 0x7000000);
  EXPECT_EQ(first_difference(content_of(*Chain::open(path, ImageFormat::Qcow2, {})), content_by_qemu(path)),
            "");
}

// Holes of the file are zeros, and are not read.
TEST_F(QemuChainTest, HolesOfAFileAreZeros) {
  const std::string path = folder / "image";
  must({"qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "16M"});
  must({"qemu-io", "-f", "qcow2", "-c", "write -P 3 1M 64k", "-c", "write -P 4 15M 64k", path});
  const auto chain = Chain::open(path, ImageFormat::Qcow2, {});
  EXPECT_EQ(usage_of(chain->top()).data, 16 * kMiB) << "the map says data everywhere";
  std::uint64_t data = 0;
  ExtentSource extents = extents_of(*chain);
  while (const std::optional<Extent> extent = extents()) {
    if (extent->kind == Kind::Data) data += extent->range.length();
  }
  EXPECT_GE(data, 128U << 10);
  EXPECT_LE(data, kMiB);
  EXPECT_EQ(first_difference(content_of(*chain), content_by_qemu(path)), "");
  // The file ends where QEMU ends it, and what is past its end is not a hole.
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 2 * kMiB);
  const auto cut = Chain::open(path, ImageFormat::Qcow2, {});
  EXPECT_EQ(outcome_of([&] { digest_of(*cut, cut->size(), {}); }), Outcome::Mismatch);
}

class SalvageTest : public DamageTest {
 protected:
  struct Rescued {
    Bytes bytes;
    std::vector<std::uint64_t> lost;  // blocks of 64 KiB
  };
  // Block by block, as extents() has it.
  static Rescued rescue(Chain& chain) {
    Rescued rescued;
    rescued.bytes.resize(chain.size());
    const std::unique_ptr<Reader> reader = chain.open_reader();
    ExtentSource extents = extents_of(chain);
    std::vector<bool> data(chain.size() >> 16);
    while (const std::optional<Extent> extent = extents()) {
      if (extent->kind != Kind::Data) continue;
      for (std::uint64_t at = extent->range.begin.bytes(); at < extent->range.end.bytes(); at += 512) {
        data[at >> 16] = true;
      }
    }
    for (std::uint64_t block = 0; block < data.size(); ++block) {
      if (!data[block]) continue;
      const ReadRequest request{GuestOffset(block << 16),
                                std::span(rescued.bytes).subspan(block << 16, 1 << 16)};
      if (outcome_of([&] { reader->read(std::span(&request, 1)); }) != Outcome::Done) {
        rescued.lost.push_back(block);
      }
    }
    return rescued;
  }
};

TEST_F(SalvageTest, ALayerThatIsMissing) {
  must({"qemu-img", "create", "-q", "-f", "qcow2", folder / "base", "4M"});
  must({"qemu-io", "-f", "qcow2", "-c", "write -P 9 0 4M", folder / "base"});
  must({"qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", folder / "top", "4M"});
  must({"qemu-io", "-f", "qcow2", "-c", "write -P 1 1M 1M", "-c", "write -z 2M 1M", folder / "top"});
  std::filesystem::remove(folder / "base");
  EXPECT_EQ(outcome_of([&] { Chain::open(folder / "top", ImageFormat::Qcow2, {}); }), Outcome::Io);

  const auto chain = Chain::open_for_salvage(folder / "top", ImageFormat::Qcow2, {});
  EXPECT_NE(chain->missing().find("base"), std::string::npos);
  const Rescued rescued = rescue(*chain);
  std::vector<std::uint64_t> expected;
  for (std::uint64_t block = 0; block < 64; ++block) {
    if (block < 16 || block >= 48) expected.push_back(block);
  }
  EXPECT_EQ(rescued.lost, expected);
  Bytes disk(4 * kMiB);
  std::ranges::fill(std::span(disk).subspan(kMiB, kMiB), std::byte{1});
  EXPECT_EQ(first_difference(rescued.bytes, disk), "");
  Bytes block(1 << 16);
  const ReadRequest request{GuestOffset(0), block};
  try {
    chain->open_reader()->read(std::span(&request, 1));
    FAIL() << "not zeros";
  } catch (const ReadError& error) {
    EXPECT_NE(std::string(error.what()).find("base"), std::string::npos) << error.what();
  }
}

TEST_F(SalvageTest, AnEntryThatIsCorrupt) {
  const std::string path = folder / "image";
  must({"qemu-img", "create", "-q", "-f", "qcow2", path, "4M"});
  must({"qemu-io", "-f", "qcow2", "-c", "write -P 5 0 4M", path});
  const std::uint64_t l1 = Image(File::open_to_read(path)).header().l1_table.bytes();
  const std::uint64_t l2 = decode_l1(peek(path, l1)).table.bytes();
  for (const std::uint64_t block : {7, 40}) poke(path, l2 + 8 * block, kCopied | 0x52a00);
  const auto chain = Chain::open_for_salvage(path, ImageFormat::Qcow2, {});
  EXPECT_EQ(chain->missing(), "");
  const Rescued rescued = rescue(*chain);
  EXPECT_EQ(rescued.lost, (std::vector<std::uint64_t>{7, 40}));
  Bytes disk(4 * kMiB, std::byte{5});
  for (const std::uint64_t block : {7, 40}) {
    std::ranges::fill(std::span(disk).subspan(block << 16, 1 << 16), std::byte{0});
  }
  EXPECT_EQ(first_difference(rescued.bytes, disk), "");
}

// Of a block of which a part is gone, the rest is there.
TEST_F(SalvageTest, ABlockOfWhichAPartIsGone) {
  const std::string path = folder / "image";
  must({"qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "64k"});
  must({"qemu-io", "-f", "qcow2", "-c", "write -P 5 0 64k", path});
  const std::uint64_t l1 = Image(File::open_to_read(path)).header().l1_table.bytes();
  poke(path, decode_l1(peek(path, l1)).table.bytes() + 8 * 3, kCopied | 0x7000000);
  const Rescued rescued = rescue(*Chain::open_for_salvage(path, ImageFormat::Qcow2, {}));
  EXPECT_EQ(rescued.lost, std::vector<std::uint64_t>{0});
  Bytes disk(65536, std::byte{5});
  std::ranges::fill(std::span(disk).subspan(3 * 4096, 4096), std::byte{0});
  EXPECT_EQ(first_difference(rescued.bytes, disk), "");
}

}  // namespace
}  // namespace qchain::tests
