// Chains that QEMU made, read as QEMU reads them; and those that must not be opened.
#include "qcow2/chain.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <thread>

#include "qcow2/format.h"
#include "tests/random.h"
#include "tests/support.h"

namespace qchain::tests {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;

std::string text(std::uint64_t value) { return std::to_string(value); }

class QemuChainTest : public RandomTest {
 protected:
  struct Built {
    std::string top;
    ImageFormat format = ImageFormat::Qcow2;
    std::size_t depth = 0;
  };

  QemuChainTest() {
    // What is written: it compresses, and no two places look alike.
    Bytes pattern(3 * kMiB);
    random.fill(pattern);
    for (std::byte& byte : pattern) byte = (byte & std::byte{0x0F}) | std::byte{0x20};
    write_file(folder / "pattern", pattern);
  }

  // Sizes differ between layers, by whole sectors.
  std::uint64_t any_length() {
    return random.chance(40) ? 3 * kMiB : 512 * random.between(1, 3 * kMiB / 512);
  }

  void build_raw(const std::string& path) {
    const File file = create_file(path);
    std::uint64_t size = any_length();
    if (random.chance(40)) size -= random.below(512);  // QEMU rounds it up
    file.resize(size);
    for (int i = 0; i < 6; ++i) {
      Bytes bytes(random.between(1, std::min<std::uint64_t>(size, 200000)));
      random.fill(bytes);
      file.write(HostOffset(random.between(0, size - bytes.size())), bytes);
    }
  }

  std::string range_in(std::uint64_t size, std::uint64_t unit) {
    const std::uint64_t at = align_down(random.below(size), unit);
    const std::uint64_t longest = std::max<std::uint64_t>(size / 6, unit);
    const std::uint64_t length = align_up(random.between(1, longest), unit);
    return ' ' + text(at) + ' ' + text(std::min(length, size - at));
  }

  void build_qcow2(const std::string& path, const std::string& backing, const std::string& format) {
    const bool v2 = random.chance(20);
    const bool extended = !v2 && random.chance(30);
    const unsigned bits = extended ? random.bits(14, 21) : random.bits(9, 21);
    std::string options = "cluster_size=" + text(1U << bits);
    if (v2) options += ",compat=0.10";
    if (extended) options += ",extended_l2=on";
    if (!v2 && random.chance(50)) options += ",compression_type=zstd";
    if (!v2 && random.chance(20)) options += ",refcount_bits=" + text(1U << random.bits(3, 6));
    const std::uint64_t size = any_length();
    std::vector<std::string> create{"qemu-img", "create", "-q", "-f", "qcow2", "-o", options};
    if (!backing.empty()) create.insert(create.end(), {"-b", backing, "-F", format});
    create.insert(create.end(), {path, text(size)});
    must(create);

    // Compressed clusters first: they cannot replace others.
    const std::uint64_t cluster = 1U << bits;
    std::vector<std::string> io{"qemu-io", "-f", "qcow2"};
    std::set<std::uint64_t> compressed;
    if (random.chance(60)) {
      for (int i = 0; i < 8; ++i) compressed.insert(align_down(random.below(size), cluster));
    }
    for (const std::uint64_t at : compressed) {
      io.insert(io.end(), {"-c", "write -c -s " + folder / "pattern" + ' ' + text(at) + ' ' +
                                     text(std::min(cluster, size - at))});
    }
    for (std::uint64_t i = random.below(8); i > 0; --i) {
      const std::uint64_t unit = random.one_of<std::uint64_t>({512, 4096, cluster});
      io.insert(io.end(),
                {"-c", random.one_of<std::string>({"write -s " + folder / "pattern",
                                                   "write -s " + folder / "pattern", "write -P 7",
                                                   "write -z", "write -z -u", "discard"}) +
                           range_in(size, unit)});
    }
    io.push_back(path);
    if (io.size() > 4) must(io);
  }

  Built build() {
    Built built;
    built.depth = random.between(1, 5);
    std::string below;
    std::string format;
    for (std::size_t i = 0; i < built.depth; ++i) {
      const bool raw = i == 0 && random.chance(40);
      const std::string name = "layer" + text(i) + (raw ? ".raw" : ".qcow2");
      if (raw) {
        build_raw(folder / name);
      } else {
        build_qcow2(folder / name, below, format);
      }
      below = name;
      format = raw ? "raw" : "qcow2";
    }
    built.top = folder / below;
    built.format = format == "raw" ? ImageFormat::Raw : ImageFormat::Qcow2;
    return built;
  }

  // Batches of requests of any size and place, some of them overlapping.
  void read_at_random(Chain& chain, const Bytes& expected) {
    const std::unique_ptr<Reader> reader = chain.open_reader();
    for (int batch = 0; batch < 10; ++batch) {
      std::vector<Bytes> buffers(random.between(1, 6));
      std::vector<ReadRequest> requests;
      for (Bytes& buffer : buffers) {
        const std::uint64_t at = random.below(chain.size());
        const std::uint64_t longest = random.one_of<std::uint64_t>({1, 1000, 70000, 3 * kMiB});
        buffer.resize(random.between(1, std::min(longest, chain.size() - at)));
        random.fill(buffer);
        requests.push_back({GuestOffset(at), buffer});
      }
      reader->read(requests);
      for (const ReadRequest& request : requests) {
        const auto from = expected.begin() + static_cast<std::ptrdiff_t>(request.begin.bytes());
        ASSERT_TRUE(std::ranges::equal(
            request.into, std::span(from, from + static_cast<std::ptrdiff_t>(request.into.size()))))
            << to_string(request.range());
      }
    }
  }

  // The whole of map(), asked for from each answer's end on.
  static std::vector<Mapping> whole_map(const Chain& chain) {
    std::vector<Mapping> all;
    for (GuestRange rest = guest_range(0, chain.size()); !rest.empty();) {
      const std::vector<Mapping> answer = chain.map(rest);
      EXPECT_FALSE(answer.empty());
      if (answer.empty()) break;
      EXPECT_EQ(answer.front().range.begin, rest.begin);
      for (std::size_t i = 0; i < answer.size(); ++i) {
        EXPECT_FALSE(answer[i].range.empty());
        if (i > 0) {
          EXPECT_EQ(answer[i].range.begin, answer[i - 1].range.end);
        }
        all.push_back(answer[i]);
      }
      rest.begin = answer.back().range.end;
    }
    return all;
  }

  Folder folder;
};

TEST_F(QemuChainTest, ReadsWhatQemuReads) {
  for (int round = 0; round < 14; ++round) {
    const Built built = build();
    SCOPED_TRACE("round " + text(static_cast<std::uint64_t>(round)));
    const auto chain = Chain::open(built.top, built.format, {});
    ASSERT_EQ(chain->layers().size(), built.depth);
    Bytes expected;
    if (built.format == ImageFormat::Qcow2) {
      expected = content_by_qemu(built.top);
    } else {
      expected = read_file(built.top);
      expected.resize(align_up(expected.size(), kSectorSize));
    }
    ASSERT_EQ(chain->size(), expected.size());
    ASSERT_EQ(first_difference(content_of(*chain), expected), "");
    read_at_random(*chain, expected);
  }
}

TEST_F(QemuChainTest, MapsWhatQemuMaps) {
  for (int round = 0; round < 10; ++round) {
    const Built built = build();
    const auto chain = Chain::open(built.top, built.format, {});
    const std::vector<Mapping> map = whole_map(*chain);
    const auto json = nlohmann::json::parse(
        must({"qemu-img", "map", "--output=json", "-f",
              built.format == ImageFormat::Qcow2 ? "qcow2" : "raw", built.top}));
    // Both cut where either changes, and compared piece by piece.
    auto ours = map.begin();
    std::uint64_t at = 0;
    for (const auto& theirs : json) {
      const std::uint64_t end =
          theirs["start"].get<std::uint64_t>() + theirs["length"].get<std::uint64_t>();
      while (at < end) {
        ASSERT_NE(ours, map.end());
        SCOPED_TRACE(to_string(ours->range) + " against " + theirs.dump());
        const bool data = ours->kind == Kind::Data;
        ASSERT_EQ(data, theirs["data"].get<bool>());
        if (data) {
          ASSERT_EQ(ours->layer, theirs["depth"].get<std::size_t>());
          ASSERT_EQ(ours->storage == Storage::Plain, theirs.contains("offset"));
        } else {
          ASSERT_TRUE(theirs["zero"].get<bool>());
        }
        if (data && ours->storage == Storage::Plain) {
          ASSERT_EQ(ours->host + (at - ours->range.begin.bytes()),
                    HostOffset(theirs["offset"].get<std::uint64_t>() + at -
                               theirs["start"].get<std::uint64_t>()));
        }
        at = std::min(end, ours->range.end.bytes());
        if (at == ours->range.end.bytes()) ++ours;
      }
    }
    EXPECT_EQ(at, chain->size());
    // extents() is the same without the places.
    const Extents extents = collect(extents_of(*chain));
    Extents from_map;
    for (const Mapping& mapping : map) {
      append(from_map, {mapping.range, mapping.kind == Kind::Data ? Kind::Data : Kind::Zero});
    }
    EXPECT_EQ(extents, from_map);
    // A part of the map is the part that is asked for.
    for (int i = 0; i < 20; ++i) {
      const std::uint64_t begin = random.below(chain->size());
      const GuestRange range = guest_range(begin, random.between(1, chain->size() - begin));
      EXPECT_EQ(collect(extents_of(*chain, range)), collect(clip(stream(extents), range)));
    }
  }
}

TEST_F(QemuChainTest, UsageCountsWhatALayerHolds) {
  for (int round = 0; round < 4; ++round) {
    const Built built = build();
    const auto chain = Chain::open(built.top, built.format, {});
    for (const Layer& layer : chain->layers()) {
      const LayerUsage usage = usage_of(layer);
      EXPECT_EQ(usage.data + usage.zero + usage.inherit, layer.virtual_size());
    }
    LayerUsage of_top;
    for (const Mapping& mapping : whole_map(*chain)) {
      if (mapping.layer == 0 && mapping.kind == Kind::Data) of_top.data += mapping.range.length();
    }
    EXPECT_EQ(usage_of(chain->top()).data, of_top.data);
  }
}

// An answer has a bounded number of pieces, whatever the layers look like: 32768 subclusters, every
// third of which is in the top layer and every second in the middle one.
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
    for (std::uint64_t at = mapping.range.begin.bytes(); at < mapping.range.end.bytes();
         at += kUnit) {
      const std::uint64_t i = at / kUnit;
      ASSERT_EQ(mapping.layer, i % 3 == 0 ? 0U : i % 2 == 0 ? 1U : 2U) << i;
    }
  }
  EXPECT_EQ(first_difference(content_of(*chain), bytes), "");
}

// base 4M <- middle 1M <- top 4M: above 1M there are zeros, never the base's data.
TEST_F(QemuChainTest, EveryLayerIsClippedAtItsEnd) {
  must({"qemu-img", "create", "-q", "-f", "qcow2", folder / "base", "4M"});
  must({"qemu-io", "-f", "qcow2", "-c", "write -P 9 0 4M", folder / "base"});
  must({"qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", folder / "middle",
        "1M"});
  must({"qemu-img", "create", "-q", "-f", "qcow2", "-b", "middle", "-F", "qcow2", folder / "top",
        "4M"});
  const auto chain = Chain::open(folder / "top", ImageFormat::Qcow2, {});
  Bytes expected(4 * kMiB);
  std::ranges::fill(std::span(expected).first(kMiB), std::byte{9});
  EXPECT_EQ(first_difference(content_of(*chain), expected), "");
  EXPECT_EQ(first_difference(content_by_qemu(folder / "top"), expected), "");
  EXPECT_EQ(collect(extents_of(*chain)), (Extents{{guest_range(0, kMiB), Kind::Data},
                                                  {guest_range(kMiB, 3 * kMiB), Kind::Zero}}));
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
  void layer(const std::string& name, const std::string& backing,
             std::optional<std::string> format = "qcow2", std::optional<Identity> identity = {}) {
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

TEST_F(PolicyTest, FollowsNamesBeneathTheTopImagesFolder) {
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

TEST_F(PolicyTest, RefusesWhatIsNoPlainPath) {
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
  // What is said binds: a qcow2 image as raw is its bytes.
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
  EXPECT_EQ(on("pipe"), Outcome::Io) << "and nobody waits for a writer";
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
TEST_F(PolicyTest, AnExternalDataFileIsBeneathTheTopImagesFolder) {
  must({"qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=" + folder / "other/data.raw",
        folder / "tree/external.qcow2", "4096"});
  OpenOptions options;
  options.allow_data_file = true;
  const auto opened = [&] {
    return outcome_of(
        [&] { Chain::open(folder / "tree/external.qcow2", ImageFormat::Qcow2, options); });
  };
  EXPECT_EQ(opened(), Outcome::Incomplete);
  options.backing_roots = {folder / "other"};
  EXPECT_EQ(opened(), Outcome::Done);
  std::filesystem::remove(folder / "other/data.raw");
  EXPECT_EQ(opened(), Outcome::Io);
}

// As QEMU's tools do among themselves: a reader keeps writers out, and a writer keeps readers out.
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
  // One that has not begun yet may find us reading for a moment; QEMU would then give up.
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
  must({"qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=" + data, folder / "tree/base.qcow2", "4096"});
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

TEST_F(IdentityChainTest, ChainsWhoseLinksDoNotFitAreMismatches) {
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
  EXPECT_NE(found.problems.front().message.find(first.id), std::string::npos);
}

TEST_F(PolicyTest, TheDepthIsCapped) {
  for (std::size_t i = 0; i <= kMaxChainDepth; ++i) {
    layer("tree/" + text(i), i == 0 ? "" : text(i - 1));
  }
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
  // A stream that is none shows when it is read.
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

// Whatever is done to the metadata: an answer or an Error, in bounded time and memory.
TEST_F(DamageTest, AnyDamageEndsInAnswersOrErrors) {
  for (int image = 0; image < 6; ++image) {
    const std::string good = folder / "good";
    build_qcow2(good, "", "");
    const Bytes bytes = read_file(good);
    const Image sound(File::open_to_read(good));
    const std::string path = folder / "bad";
    for (int round = 0; round < 40; ++round) {
      Bytes bad = bytes;
      for (std::uint64_t hits = random.between(1, 6); hits > 0; --hits) {
        // Into the header, the L1 table or anything.
        const std::uint64_t at = random.one_of<std::uint64_t>(
            {random.below(112), sound.header().l1_table.bytes() + random.below(64),
             random.below(bad.size())});
        if (at < bad.size()) bad[at] ^= static_cast<std::byte>(1 << random.below(8));
      }
      write_file(path, bad);
      const Outcome outcome = outcome_of([&] {
        const auto chain = Chain::open(path, ImageFormat::Qcow2, {});
        Bytes some(std::min<std::uint64_t>(chain->size(), kMiB));
        const ReadRequest request{GuestOffset(0), some};
        if (!some.empty()) chain->open_reader()->read(std::span(&request, 1));
        GuestRange rest = guest_range(0, chain->size());
        for (int i = 0; i < 5 && !rest.empty(); ++i) rest.begin = chain->map(rest).back().range.end;
      });
      EXPECT_TRUE(outcome == Outcome::Done || outcome == Outcome::Mismatch ||
                  outcome == Outcome::Incomplete || outcome == Outcome::Io)
          << to_string(outcome);
    }
  }
}

}  // namespace
}  // namespace qchain::tests
