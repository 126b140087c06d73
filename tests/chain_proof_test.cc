// Manifests that are written with layers, their roots, and findings of verify, compared with a model that
// computes all of it from the whole content.
#include "verify/chain_proof.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <set>

#include "tests/proven_chain.h"
#include "tests/random.h"
#include "tests/support.h"
#include "verify/compare.h"
#include "verify/device_digest.h"
#include "verify/seal.h"

namespace qchain::tests {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMiB = 1 << 20;
constexpr Algorithm kAll[] = {Algorithm::Sha256, Algorithm::Sha512, Algorithm::Blake2b512,
                              Algorithm::Xxh3_128};

class ChainProofTest : public RandomTest {
 protected:
  Algorithm any_algorithm() { return kAll[random.below(std::size(kAll))]; }

  ProvenChain any_chain(std::size_t most_layers, std::uint64_t most_bytes) {
    ProvenChain chain(random, folder);
    const Algorithm algorithm = any_algorithm();
    for (std::uint64_t i = random.between(1, most_layers); i > 0; --i) chain.add_any(algorithm, most_bytes);
    return chain;
  }

  ProofOptions any_options() {
    ProofOptions options;
    options.workers = random.bits(1, 4);
    return options;
  }

  // Verify finds nothing: every restore point is unchanged.
  void expect_clean(const Chain& chain) {
    for (const LayerProof& layer : prove(chain, any_options())) expect_clean(layer);
  }
  static void expect_clean(const LayerProof& layer) {
    SCOPED_TRACE(layer.file);
    for (const std::string& problem : layer.manifest.problems) ADD_FAILURE() << problem;
    EXPECT_EQ(layer.manifest.outcome, Outcome::Done);
    EXPECT_TRUE(layer.manifest.root_follows);
    ASSERT_TRUE(layer.proof);
    for (const Discrepancy& damage : layer.proof->different) {
      ADD_FAILURE() << to_string(damage.range) << ": " << to_string(damage.cause) << ", stored "
                    << damage.expected << ", found " << damage.found;
    }
    EXPECT_TRUE(layer.proof->is_clean());
    EXPECT_EQ(layer.proof->unknown_bytes, 0U);
    EXPECT_EQ(layer.outcome(), Outcome::Done);
  }

  // Every block that the layer has to hold was checked.
  static void expect_counts(const LayerProof& layer, const std::vector<BlockLaw>& law) {
    ASSERT_TRUE(layer.proof);
    const auto count = [&](auto&& wanted) {
      return static_cast<std::uint64_t>(std::ranges::count_if(law, wanted));
    };
    EXPECT_EQ(layer.proof->blocks, count([](const BlockLaw& block) { return block.held != Held::None; }));
    EXPECT_EQ(layer.proof->zero_blocks,
              count([](const BlockLaw& block) { return block.held == Held::Zeros; }));
    EXPECT_EQ(layer.proof->partial_blocks,
              count([](const BlockLaw& block) { return block.held == Held::Part; }));
  }

  // The manifest of a layer has the expected records, and the root of the whole content.
  void expect_law(const ProvenChain& chain, std::size_t index) {
    SCOPED_TRACE(chain.path(index));
    const ProvenLayer& layer = chain.from_top(index);
    const std::vector<BlockLaw> law = chain.law(index);
    std::vector<BlockLaw> found(law.size());
    ManifestReader reader(chain.manifest(index));
    ManifestRecord record;
    while (reader.next(record)) {
      for (std::uint64_t i = 0; i < record.count; ++i) {
        BlockLaw& block = found.at(record.first + i);
        block.held = record.held;
        if (record.held != Held::Zeros) block.whole = record.whole[i];
        if (record.held == Held::Part) block.part = record.part[i];
      }
    }
    for (std::size_t i = 0; i < law.size(); ++i) {
      ASSERT_EQ(static_cast<int>(found[i].held), static_cast<int>(law[i].held)) << "block " << i;
      ASSERT_EQ(found[i].whole, law[i].whole) << "block " << i;
      ASSERT_EQ(found[i].part, law[i].part) << "block " << i;
    }
    const Digest root = blkhash_of(layer.algorithm, layer.content());
    EXPECT_EQ(reader.root(), root);
    EXPECT_EQ(layer.root, root);
    const auto disk = chain.open(index);
    EXPECT_EQ(digest_of(*disk, disk->top().true_length(), {layer.algorithm, 2, [](std::uint64_t) {}}), root);
  }

  // A disk with these bytes, which may report zeros or not.
  MemoryDevice live_disk(const Bytes& bytes) {
    const bool knows_its_zeros = random.chance(50);
    Extents extents;
    for (std::uint64_t at = 0; at < bytes.size(); at += 4096) {
      const std::uint64_t length = std::min<std::uint64_t>(4096, bytes.size() - at);
      const bool zero =
          knows_its_zeros && std::ranges::all_of(std::span(bytes).subspan(at, length),
                                                 [](std::byte byte) { return byte == std::byte{0}; });
      append(extents, {guest_range(at, length), zero ? Kind::Zero : Kind::Data});
    }
    return {bytes, extents, random.one_of<std::uint64_t>({30000, 1 << 30})};
  }

  // Changes one byte of a file.
  static void flip(const std::string& path, HostOffset at) {
    Bytes bytes = read_file(path);
    bytes.at(at.bytes()) ^= std::byte{0x20};
    write_file(path, bytes);
  }

  static GuestRange block_at(const Bytes& content, std::uint64_t offset) {
    return intersect(guest_range(align_down(offset, kDigestBlock), kDigestBlock),
                     guest_range(0, content.size()));
  }

  // 4 KiB clusters on blocks of 64 KiB, so that a layer can hold a part of one.
  static LayerOptions small_clusters() {
    LayerOptions options;
    options.cluster_bits = 12;
    return options;
  }
  Disk disk_of(const Bytes& bytes, const Extents& extents) { return {bytes, extents}; }

  Folder folder;
};

TEST_F(ChainProofTest, ManifestsAreWhatTheContentIs) {
  for (int round = 0; round < rounds(30); ++round) {
    const ProvenChain chain = any_chain(5, round % 5 == 0 ? 5 * kMiB : kMiB);
    SCOPED_TRACE(testing::Message() << "round " << round << ": " << chain.description());
    for (std::size_t i = 0; i < chain.layers().size(); ++i) expect_law(chain, i);
    const auto opened = chain.open();
    const std::vector<LayerProof> layers = prove(*opened, any_options());
    ASSERT_EQ(layers.size(), chain.layers().size());
    for (std::size_t i = 0; i < layers.size(); ++i) {
      EXPECT_EQ(layers[i].file, chain.path(i));
      expect_clean(layers[i]);
      expect_counts(layers[i], chain.law(i));
    }
    if (HasFatalFailure()) return;
  }
}

TEST_F(ChainProofTest, ADiskAgainstTheDigests) {
  for (int round = 0; round < rounds(20); ++round) {
    const ProvenChain chain = any_chain(4, kMiB);
    SCOPED_TRACE(testing::Message() << "round " << round << ": " << chain.description());
    const auto opened = chain.open();
    Bytes content = chain.from_top(0).content();
    const ProofOptions options = any_options();
    {
      MemoryDevice disk = live_disk(content);
      const Proof proof = prove_disk(disk, *opened, *digests_of(*opened), options);
      EXPECT_TRUE(proof.is_clean());
      EXPECT_EQ(proof.unknown_bytes, 0U);
      EXPECT_FALSE(proof.stopped_at);
    }
    const std::uint64_t at =
        random.one_of<std::uint64_t>({random.below(content.size()), 0, content.size() - 1});
    const std::byte now{
        static_cast<unsigned char>(std::to_integer<unsigned>(content[at]) + random.between(1, 255))};
    content[at] = now;
    MemoryDevice disk = live_disk(content);
    const Proof proof = prove_disk(disk, *opened, *digests_of(*opened), options);
    ASSERT_EQ(proof.different.size(), 1U);
    EXPECT_EQ(proof.different[0].range, block_at(content, at));
    EXPECT_EQ(proof.different[0].cause, Cause::Changed);
    EXPECT_EQ(proof.different_bytes, proof.different[0].range.length());
    EXPECT_EQ(proof.unread_bytes, 0U);
  }
}

// All data of a block that turned to zeros, on the live side.
TEST_F(ChainProofTest, ADiskThatWasTrimmed) {
  ProvenChain chain(random, folder);
  Bytes bytes(kMiB);
  random.fill(bytes);
  chain.add({bytes, {{guest_range(0, kMiB), Kind::Data}}}, {}, Algorithm::Sha256);
  const auto opened = chain.open();
  MemoryDevice live(Bytes(kMiB), {{guest_range(0, kMiB), Kind::Zero}}, kMiB);
  const Proof proof = prove_disk(live, *opened, *digests_of(*opened), {});
  EXPECT_EQ(proof.different_bytes, kMiB);
  EXPECT_EQ(proof.read_bytes, 0U);
}

// A byte of any data cluster of any layer: the layer that holds it is damaged, those above are not to blame.
TEST_F(ChainProofTest, CorruptionIsReportedWhereItIs) {
  for (int round = 0; round < rounds(20); ++round) {
    const ProvenChain chain = any_chain(4, kMiB);
    SCOPED_TRACE(testing::Message() << "round " << round << ": " << chain.description());
    const std::size_t index = random.below(chain.layers().size());
    std::vector<Mapping> data;
    {
      const auto opened = chain.open();
      for (const Mapping& mapping :
           opened->map_layer_alone(index, guest_range(0, opened->layers()[index].true_length()))) {
        if (mapping.kind == Kind::Data && mapping.storage == Storage::Plain) data.push_back(mapping);
      }
    }
    if (data.empty()) continue;
    const Mapping& mapping = data[random.below(data.size())];
    const std::uint64_t within = random.below(mapping.range.length());
    flip(chain.path(index), mapping.host + within);
    const GuestRange block = block_at(chain.from_top(index).content(), mapping.range.begin.bytes() + within);
    const auto opened = chain.open();
    const std::vector<LayerProof> layers = prove(*opened, any_options());
    for (std::size_t i = 0; i < layers.size(); ++i) {
      SCOPED_TRACE(testing::Message() << "layer " << i << ", damaged is " << index);
      ASSERT_TRUE(layers[i].proof);
      const Proof& proof = *layers[i].proof;
      EXPECT_EQ(layers[i].manifest.outcome, Outcome::Done);
      if (i > index) {
        EXPECT_TRUE(proof.is_clean());
      } else if (i == index) {
        ASSERT_EQ(proof.different.size(), 1U);
        EXPECT_EQ(proof.different[0].range, block);
        EXPECT_EQ(proof.different[0].cause, Cause::Rotted);
        EXPECT_EQ(proof.different[0].layer, index);
        EXPECT_EQ(layers[i].outcome(), Outcome::Mismatch);
      } else {
        for (const Discrepancy& damage : proof.different) EXPECT_EQ(damage.cause, Cause::Below);
      }
    }
  }
}

// A change that the bitmap missed, inside a block of which another part is held: found without a live side,
// and distinguished from corruption below.
TEST_F(ChainProofTest, AMissedChangeBesideAHeldPart) {
  ProvenChain chain(random, folder);
  Bytes bytes(kMiB);
  random.fill(bytes);
  chain.add(disk_of(bytes, {{guest_range(0, kMiB), Kind::Data}}), small_clusters(), Algorithm::Sha256);
  // 8K are reported as changed, but 12K did change.
  random.fill(std::span(bytes).subspan(5 * kDigestBlock + 4096, 12288));
  Extents extents;
  const std::uint64_t begin = 5 * kDigestBlock + 4096;
  append(extents, {guest_range(0, begin), Kind::Inherit});
  append(extents, {guest_range(begin, 8192), Kind::Data});
  append(extents, {guest_range(begin + 8192, kMiB - begin - 8192), Kind::Inherit});
  chain.add(disk_of(bytes, extents), small_clusters(), Algorithm::Sha256);
  {
    const auto opened = chain.open();
    const std::vector<LayerProof> layers = prove(*opened, any_options());
    expect_clean(layers[1]);
    ASSERT_TRUE(layers[0].proof);
    ASSERT_EQ(layers[0].proof->different.size(), 1U);
    EXPECT_EQ(layers[0].proof->different[0].range, guest_range(5 * kDigestBlock, kDigestBlock));
    EXPECT_EQ(layers[0].proof->different[0].cause, Cause::Missed);
    EXPECT_EQ(layers[0].outcome(), Outcome::Mismatch);
    // Against the live side too.
    MemoryDevice live = live_disk(bytes);
    RestorePoints points(*opened);
    const std::unique_ptr<ChainDigests> stored = points.digests(0);
    CompareOptions options;
    options.stored = stored.get();
    options.points = &points;
    const Comparison comparison = compare(*opened, live, options);
    EXPECT_EQ(comparison.different_bytes, 4096U);
    ASSERT_EQ(comparison.different.size(), 1U);
    EXPECT_EQ(comparison.different[0].cause, Cause::Missed);
  }
  // Corruption below it is something else.
  const auto mapping = chain.open(1)->map(guest_range(5 * kDigestBlock + 40960, 1)).front();
  flip(chain.path(1), mapping.host);
  const std::vector<LayerProof> layers = prove(*chain.open(), any_options());
  ASSERT_EQ(layers[0].proof->different.size(), 1U);
  EXPECT_EQ(layers[0].proof->different[0].cause, Cause::Below);
  EXPECT_EQ(layers[1].proof->different[0].cause, Cause::Rotted);
}

// If a layer below has no manifest, it is unknown whether it was corrupted or the bitmap missed something.
TEST_F(ChainProofTest, DamageBelowAnUnknownLayerIsNotBlamedOnTheBitmap) {
  ProvenChain chain(random, folder);
  Bytes bytes(kMiB);
  random.fill(bytes);
  chain.add(disk_of(bytes, {{guest_range(0, kMiB), Kind::Data}}), small_clusters(), Algorithm::Sha256);
  random.fill(std::span(bytes).first(4096));
  chain.add(
      disk_of(bytes, {{guest_range(0, 4096), Kind::Data}, {guest_range(4096, kMiB - 4096), Kind::Inherit}}),
      small_clusters(), Algorithm::Sha256);
  flip(chain.path(1), chain.open(1)->map(guest_range(8192, 1)).front().host);
  fs::remove(chain.manifest(1));
  const std::vector<LayerProof> layers = prove(*chain.open(), any_options());
  ASSERT_EQ(layers[0].proof->different.size(), 1U);
  EXPECT_EQ(layers[0].proof->different[0].cause, Cause::Unknown);
  EXPECT_EQ(layers[0].outcome(), Outcome::Mismatch);
}

// Damage that a layer in between hides is not the cause.
TEST_F(ChainProofTest, HiddenDamageIsNotBlamed) {
  ProvenChain chain(random, folder);
  Bytes bytes(kMiB);
  random.fill(bytes);
  const Extents all{{guest_range(0, kMiB), Kind::Data}};
  chain.add(disk_of(bytes, all), small_clusters(), Algorithm::Sha256);
  random.fill(std::span(bytes).first(kDigestBlock));
  const Extents first_block{{guest_range(0, kDigestBlock), Kind::Data},
                            {guest_range(kDigestBlock, kMiB - kDigestBlock), Kind::Inherit}};
  chain.add(disk_of(bytes, first_block), small_clusters(), Algorithm::Sha256);
  // 8K changed, but only 4K are reported as changed.
  random.fill(std::span(bytes).first(8192));
  chain.add(
      disk_of(bytes, {{guest_range(0, 4096), Kind::Data}, {guest_range(4096, kMiB - 4096), Kind::Inherit}}),
      small_clusters(), Algorithm::Sha256);
  flip(chain.path(2), chain.open(2)->map(guest_range(4096, 1)).front().host);
  const std::vector<LayerProof> layers = prove(*chain.open(), any_options());
  ASSERT_EQ(layers[0].proof->different.size(), 1U);
  EXPECT_EQ(layers[0].proof->different[0].cause, Cause::Missed);
}

// The padding of the last sector is visible to a guest, and is written to a device.
TEST_F(ChainProofTest, ThePaddingOfTheLastSectorIsChecked) {
  for (const std::uint64_t size : {100001UL, 65536UL + 511, 1UL}) {
    ProvenChain chain(random, folder);
    Bytes bytes(size);
    random.fill(bytes);
    bytes.back() = std::byte{1};
    chain.add(disk_of(bytes, {{guest_range(0, size), Kind::Data}}), small_clusters(), Algorithm::Sha256);
    if (random.chance(50)) {
      chain.add(disk_of(bytes, {{guest_range(0, size), Kind::Inherit}}), small_clusters(), Algorithm::Sha256);
    }
    expect_clean(*chain.open());
    const std::uint64_t last = align_up(size, kSectorSize) - 1;
    const auto mapping = chain.open()->map(guest_range(last, 1)).front();
    ASSERT_EQ(mapping.storage, Storage::Plain);
    flip(chain.path(mapping.layer), mapping.host);
    const auto opened = chain.open();
    EXPECT_EQ(content_of(*opened).back(), std::byte{0x20});
    const std::vector<LayerProof> layers = prove(*opened, any_options());
    EXPECT_EQ(layers[mapping.layer].outcome(), Outcome::Mismatch);
    ASSERT_EQ(layers[mapping.layer].proof->different.size(), 1U);
    EXPECT_EQ(layers[mapping.layer].proof->different[0].cause, Cause::Rotted);
    MemoryDevice live = live_disk(bytes);
    EXPECT_NE(compare(*opened, live, {}).different_bytes, 0U);
  }
}

// --- sealing
// ----------------------------------------------------------------------------------------------------------

TEST_F(ChainProofTest, SealedAgain) {
  for (int round = 0; round < rounds(25); ++round) {
    const ProvenChain chain = any_chain(4, kMiB);
    SCOPED_TRACE(testing::Message() << "round " << round << ": " << chain.description());
    std::vector<Bytes> before;
    std::vector<bool> removed;
    for (std::size_t i = 0; i < chain.layers().size(); ++i) {
      before.push_back(read_file(chain.manifest(i)));
      removed.push_back(round % 3 == 0 || random.chance(50));
      if (removed.back()) fs::remove(chain.manifest(i));
    }
    const auto opened = chain.open();
    for (std::size_t i = chain.layers().size(); i-- > 0;) {
      EXPECT_EQ(seal(*opened, i, {random.bits(1, 4), nullptr, [](std::uint64_t) {}}),
                removed[i] ? Sealed::Written : Sealed::Already);
      // The same bytes, though it was the layer that was read and not the live side.
      EXPECT_EQ(first_difference(read_file(chain.manifest(i)), before[i]), "") << i;
    }
    expect_clean(*opened);
  }
}

// Layers that were written while a manifest was missing: their roots are unknown until they are sealed.
TEST_F(ChainProofTest, SealedAfterwards) {
  for (int round = 0; round < rounds(25); ++round) {
    ProvenChain chain(random, folder);
    const Algorithm algorithm = Algorithm::Sha256;
    const std::size_t depth = random.between(2, 4);
    for (std::size_t i = 0; i < depth; ++i) {
      chain.add_any(algorithm, kMiB);
      if (random.chance(50)) fs::remove(chain.manifest(0));
    }
    SCOPED_TRACE(testing::Message() << "round " << round << ": " << chain.description());
    const auto opened = chain.open();
    for (std::size_t i = depth; i-- > 0;) seal(*opened, i, {2, nullptr, [](std::uint64_t) {}});
    expect_clean(*opened);
    for (std::size_t i = 0; i < depth; ++i) {
      EXPECT_EQ(Manifest(chain.manifest(i)).summary().root,
                blkhash_of(algorithm, chain.from_top(i).content()));
    }
  }
}

// Layers that QEMU made, raw bases, and layers on top of them.
TEST_F(ChainProofTest, ForeignLayersAreSealed) {
  for (int round = 0; round < rounds(12); ++round) {
    const auto size_of = [&] { return kSectorSize * random.between(1, 2 * kMiB / kSectorSize); };
    std::string below;
    std::string format;
    std::vector<std::string> names;
    const std::uint64_t size = size_of();
    if (random.chance(50)) {
      below = "base.raw";
      format = "raw";
      // Of any length, which QEMU rounds up.
      write_file(folder / below,
                 random_disk(random, random.chance(50) ? size : size - random.below(kSectorSize), 4096,
                             Position::Bottom)
                     .bytes);
      names.push_back(below);
    }
    const std::string options =
        random.one_of<std::string>({"cluster_size=64K", "cluster_size=4K", "cluster_size=512",
                                    "cluster_size=128K,extended_l2=on", "cluster_size=2M"});
    for (int i = 0; i < 2; ++i) {
      const std::string name = "foreign" + std::to_string(i) + ".qcow2";
      std::vector<std::string> create{"qemu-img", "create", "-q", "-f", "qcow2", "-o", options};
      if (!below.empty()) create.insert(create.end(), {"-b", folder / below, "-F", format});
      const std::uint64_t here = random.chance(50) ? size : size_of();
      create.insert(create.end(), {folder / name, std::to_string(here)});
      must(create);
      std::vector<std::string> io{"qemu-io", "-f", "qcow2"};
      for (int writes = 0; writes < 6; ++writes) {
        const std::uint64_t at = kSectorSize * random.below(here / kSectorSize);
        const std::uint64_t length =
            std::min(here - at, kSectorSize * random.one_of<std::uint64_t>({1, 8, 100, 400}));
        const std::string verb =
            random.one_of<std::string>({"write -P 7 ", "write -P 3 ", "write -z ", "discard "});
        io.insert(io.end(), {"-c", verb + std::to_string(at) + " " + std::to_string(length)});
      }
      io.push_back(folder / name);
      must(io);
      below = name;
      format = "qcow2";
      names.push_back(name);
    }
    SCOPED_TRACE(testing::Message() << "round " << round << ", " << options << ", " << names.front());
    auto opened = Chain::open(folder / below, ImageFormat::Qcow2, {});
    for (std::size_t i = opened->layers().size(); i-- > 0;) {
      EXPECT_EQ(seal(*opened, i, {2, nullptr, [](std::uint64_t) {}}), Sealed::Written);
      const Layer& layer = opened->layers()[i];
      Bytes content(layer.virtual_size());
      const ReadRequest all{GuestOffset(0), content};
      opened->open_reader_at(i)->read(std::span(&all, 1));
      content.resize(layer.true_length());
      EXPECT_EQ(Manifest(manifest_path(layer.path())).summary().root, blkhash_of(Algorithm::Sha256, content));
      if (layer.image() != nullptr) {
        EXPECT_EQ(first_difference(content_by_qemu(layer.path()), content), "");
      }
    }
    expect_clean(*opened);
    // What is written to them afterwards is found.
    const std::string changed = opened->layers()[random.below(2)].path();
    opened.reset();  // or QEMU finds it locked
    must({"qemu-io", "-f", "qcow2", "-c", "write -P 99 0 512", changed});
    const auto again = Chain::open(folder / below, ImageFormat::Qcow2, {});
    Outcome outcome = Outcome::Done;
    for (const LayerProof& found : prove(*again, any_options())) outcome = worse(outcome, found.outcome());
    EXPECT_EQ(outcome, Outcome::Mismatch);
    for (const std::string& name : names) {
      fs::remove(folder / name);
      fs::remove(manifest_path(folder / name));
    }
  }
}

// A layer that records its digest is not sealed with another algorithm, or if it is corrupted.
TEST_F(ChainProofTest, SealingKeepsToWhatTheLayerRecords) {
  for (const Algorithm algorithm : kAll) {
    ProvenChain chain(random, folder);
    chain.add_any(algorithm, kMiB);
    chain.add_any(algorithm, kMiB);
    fs::remove(chain.manifest(0));
    fs::remove(chain.manifest(1));
    const auto opened = chain.open();
    for (const std::size_t i : {1, 0}) seal(*opened, i, {});
    EXPECT_EQ(Manifest(chain.manifest(1)).header().algorithm, algorithm);
    expect_clean(*opened);
  }
  const Folder alone;
  ProvenChain chain(random, alone);
  Bytes bytes(kMiB);
  random.fill(bytes);
  chain.add(disk_of(bytes, {{guest_range(0, kMiB), Kind::Data}}), {}, Algorithm::Sha256);
  fs::remove(chain.manifest(0));
  flip(chain.path(0), chain.open()->map(guest_range(5000, 1)).front().host);
  EXPECT_EQ(outcome_of([&] { seal(*chain.open(), 0, {}); }), Outcome::Mismatch);
  EXPECT_EQ(alone.names(), std::vector<std::string>{"layer0.qcow2"}) << "no manifest of rot";
}

// Another valid manifest under the base's name: sealing signs nothing that does not match it.
TEST_F(ChainProofTest, SealingDoesNotSignWhatDoesNotFollow) {
  must({"openssl", "genpkey", "-algorithm", "ed25519", "-out", folder / "key.pem"});
  const SigningKey key(folder / "key.pem");
  const auto build = [&](const std::string& raw, const std::string& top) {
    Bytes bytes(kMiB);
    random.fill(bytes);
    write_file(folder / raw, bytes);
    must({"qemu-img", "create", "-q", "-f", "qcow2", "-b", folder / raw, "-F", "raw", folder / top});
    auto chain = Chain::open(folder / top, ImageFormat::Qcow2, {});
    seal(*chain, 1, {});
    seal(*chain, 0, {});
    return chain;
  };
  const auto chain = build("a.raw", "a.qcow2");
  build("b.raw", "b.qcow2");
  fs::copy(manifest_path(folder / "b.raw"), manifest_path(folder / "a.raw"),
           fs::copy_options::overwrite_existing);
  const Bytes before = read_file(manifest_path(folder / "a.qcow2"));
  EXPECT_EQ(outcome_of([&] { seal(*chain, 0, {1, &key, [](std::uint64_t) {}}); }), Outcome::Mismatch);
  EXPECT_EQ(read_file(manifest_path(folder / "a.qcow2")), before);
}

// --- manifests that do not belong
// -------------------------------------------------------------------------------------

// Chains whose layers have different algorithms: each layer is proven by its own, and the root is unknown.
TEST_F(ChainProofTest, TwoAlgorithmsInOneChain) {
  ProvenChain chain(random, folder);
  chain.add_any(Algorithm::Sha256, kMiB);
  chain.add_any(Algorithm::Sha512, kMiB);
  EXPECT_FALSE(chain.from_top(0).root);
  const auto opened = chain.open();
  const std::vector<LayerProof> layers = prove(*opened, any_options());
  EXPECT_EQ(layers[0].manifest.problems, std::vector<std::string>{});
  EXPECT_TRUE(layers[0].proof->is_clean());
  EXPECT_EQ(layers[0].outcome(), Outcome::Incomplete);
  expect_clean(layers[1]);
  // What the top's own manifest does not know is unknown, and no mismatch.
  const std::unique_ptr<ChainDigests> digests = digests_of(*opened);
  ASSERT_TRUE(digests);
  MemoryDevice live = live_disk(chain.from_top(0).content());
  const Proof proof = prove_disk(live, *opened, *digests, {});
  EXPECT_TRUE(proof.is_clean());
  std::uint64_t unknown = 0;
  const std::vector<BlockLaw> law = chain.law(0);
  const std::uint64_t size = chain.from_top(0).content().size();
  for (std::size_t i = 0; i < law.size(); ++i) {
    if (law[i].held == Held::None)
      unknown += block_at(chain.from_top(0).content(), i * kDigestBlock).length();
  }
  EXPECT_LE(unknown, size);
  EXPECT_EQ(proof.unknown_bytes, unknown);
}

// A manifest of another layer says nothing about this layer's content: no corruption is reported.
TEST_F(ChainProofTest, AManifestOfAnotherDisk) {
  ProvenChain chain(random, folder);
  Bytes bytes(kMiB);
  for (int i = 0; i < 2; ++i) {
    random.fill(bytes);
    chain.add(disk_of(bytes, {{guest_range(0, kMiB), Kind::Data}}), {}, Algorithm::Sha256);
  }
  const Folder elsewhere;
  ProvenChain other(random, elsewhere);
  for (int i = 0; i < 2; ++i) {
    random.fill(bytes);
    other.add(disk_of(bytes, {{guest_range(0, kMiB), Kind::Data}}), {}, Algorithm::Sha256);
  }
  const Bytes good = read_file(chain.manifest(0));
  fs::copy(other.manifest(0), chain.manifest(0), fs::copy_options::overwrite_existing);
  std::vector<LayerProof> layers = prove(*chain.open(), any_options());
  EXPECT_EQ(layers[0].outcome(), Outcome::BadManifest);
  EXPECT_FALSE(layers[0].manifest.problems.empty());
  expect_clean(layers[1]);
  // Nor is the layer above reported.
  write_file(chain.manifest(0), good);
  fs::copy(other.manifest(1), chain.manifest(1), fs::copy_options::overwrite_existing);
  layers = prove(*chain.open(), any_options());
  EXPECT_EQ(layers[1].outcome(), Outcome::BadManifest);
  EXPECT_EQ(layers[0].outcome(), Outcome::Incomplete);
  EXPECT_TRUE(layers[0].proof && layers[0].proof->is_clean()) << "its own content is proven all the same";
}

// A new layer does not fold its root from digests of another disk.
TEST_F(ChainProofTest, NoRootFromAManifestThatDoesNotBelong) {
  ProvenChain chain(random, folder);
  Bytes bytes(kMiB);
  random.fill(bytes);
  const Extents half{{guest_range(0, kMiB / 2), Kind::Data},
                     {guest_range(kMiB / 2, kMiB / 2), Kind::Inherit}};
  chain.add(disk_of(bytes, {{guest_range(0, kMiB), Kind::Data}}), {}, Algorithm::Sha256);
  chain.add(chain.next_disk(kMiB, 4096), {}, Algorithm::Sha256);
  const Folder elsewhere;
  ProvenChain other(random, elsewhere);
  random.fill(bytes);
  other.add(disk_of(bytes, {{guest_range(0, kMiB), Kind::Data}}), {}, Algorithm::Sha256);
  fs::copy(other.manifest(0), chain.manifest(1), fs::copy_options::overwrite_existing);
  Outcome outcome = Outcome::Done;
  bool has_digests = false;
  outcome = outcome_of([&] {
    const auto opened = chain.open();
    RestorePoints points(*opened);
    has_digests = parent_digests(points, 0).digests != nullptr;
  });
  EXPECT_TRUE(outcome == Outcome::BadManifest || outcome == Outcome::Mismatch ||
              (outcome == Outcome::Done && !has_digests))
      << to_string(outcome);
}

TEST_F(ChainProofTest, Signatures) {
  for (const char* const name : {"key", "other"}) {
    must({"openssl", "genpkey", "-algorithm", "ed25519", "-out", folder / (std::string(name) + ".pem")});
    must({"openssl", "pkey", "-in", folder / (std::string(name) + ".pem"), "-pubout", "-out",
          folder / (std::string(name) + ".pub")});
  }
  const SigningKey key(folder / "key.pem");
  ProvenChain chain(random, folder);
  for (int i = 0; i < 2; ++i) chain.add(chain.next_disk(kMiB / 2, 4096), {}, Algorithm::Sha256, &key);
  const auto outcome_with = [&](std::initializer_list<const char*> trusted) {
    std::vector<TrustedKey> keys;
    for (const char* const name : trusted) keys.emplace_back(folder / name);
    Outcome outcome = Outcome::Done;
    for (const LayerProof& layer : prove(*chain.open(), {}, std::move(keys)))
      outcome = worse(outcome, layer.outcome());
    return outcome;
  };
  EXPECT_EQ(outcome_with({}), Outcome::Done);
  EXPECT_EQ(outcome_with({"key.pub"}), Outcome::Done);
  EXPECT_EQ(outcome_with({"other.pub", "key.pub"}), Outcome::Done);
  EXPECT_EQ(outcome_with({"other.pub"}), Outcome::BadManifest);
  EXPECT_EQ(outcome_of([&] { TrustedKey(folder / "key.pem"); }), Outcome::Usage) << "a private key";
  EXPECT_EQ(outcome_of([&] { SigningKey(folder / "key.pub"); }), Outcome::Usage);
  EXPECT_EQ(outcome_of([&] { SigningKey(folder / "nosuch"); }), Outcome::Io);
  must({"openssl", "genpkey", "-algorithm", "x25519", "-out", folder / "x.pem"});
  EXPECT_EQ(outcome_of([&] { SigningKey(folder / "x.pem"); }), Outcome::Usage);

  // Every bit of the signature counts.
  const Bytes good = read_file(chain.manifest(0));
  for (std::size_t i = 0; i < ManifestSignature::kSignatureBytes; ++i) {
    Bytes bad = good;
    bad[bad.size() - 1 - i] ^= std::byte{1} << random.below(8);
    write_file(chain.manifest(0), bad);
    ASSERT_EQ(outcome_with({"key.pub"}), Outcome::BadManifest) << i;
  }
  // The signature of another manifest by the same key.
  Bytes transplanted = good;
  const Bytes other = read_file(chain.manifest(1));
  std::copy(other.end() - ManifestSignature::kSignatureBytes, other.end(),
            transplanted.end() - ManifestSignature::kSignatureBytes);
  write_file(chain.manifest(0), transplanted);
  EXPECT_EQ(outcome_with({"key.pub"}), Outcome::BadManifest);
  // Edited, with a matching digest of its own, and signed with another key.
  const auto rewrite = [&](const SigningKey* with) {
    write_file(chain.manifest(0), good);
    const ManifestSummary summary = Manifest(chain.manifest(0)).summary();
    const File file = create_file(folder / "edited");
    ManifestWriter writer(file, summary.header);
    ManifestReader reader(chain.manifest(0));
    ManifestRecord record;
    while (reader.next(record)) {
      if (record.held == Held::Zeros) {
        writer.add_zeros(record.first, record.count);
        continue;
      }
      for (std::uint64_t i = 0; i < record.count; ++i) {
        if (record.first + i == 0) record.whole[i].bytes()[0] ^= std::byte{1};
        writer.add(record.held, record.first + i, record.whole[i],
                   record.held == Held::Part ? record.part[i] : Digest());
      }
    }
    const Digest own = writer.finish(summary.root);
    if (with != nullptr) writer.sign(with->sign(own));
    fs::rename(folder / "edited", chain.manifest(0));
  };
  const SigningKey thief(folder / "other.pem");
  for (const SigningKey* const with : {static_cast<const SigningKey*>(nullptr), &thief}) {
    rewrite(with);
    EXPECT_EQ(outcome_with({"key.pub"}), Outcome::BadManifest);
  }
  fs::remove(chain.manifest(0));
  EXPECT_EQ(outcome_with({"key.pub"}), Outcome::BadManifest) << "no manifest means no signature";
}

// --- parts
// ------------------------------------------------------------------------------------------------------------

TEST_F(ChainProofTest, PartsAreTheWhole) {
  for (int round = 0; round < 30; ++round) {
    const std::uint64_t length = random.one_of<std::uint64_t>(
        {1, Selection::kStripe, Selection::kStripe + 1, random.below(std::uint64_t{1} << 34) + 1});
    Extents extents;
    for (std::uint64_t at = 0; at < length;) {
      const std::uint64_t step = std::min(length - at, kDigestBlock * random.between(1, 5000));
      append(extents, {guest_range(at, step), random.one_of({Kind::Inherit, Kind::Zero, Kind::Data})});
      at += step;
    }
    Selection selection;
    selection.parts = static_cast<unsigned>(random.one_of<std::uint64_t>({1, 2, 3, 7, 1000}));
    Extents all;
    for (selection.part = 1; selection.part <= selection.parts; ++selection.part) {
      for (const Extent& extent : collect(selected(stream(extents), selection, length))) {
        ASSERT_LE(extent.range.end.bytes(), length);
        if (extent.kind != Kind::Inherit) all.push_back(extent);
      }
    }
    std::ranges::sort(all, {}, [](const Extent& extent) { return extent.range.begin; });
    Extents merged;
    GuestOffset at;
    for (const Extent& extent : all) {
      ASSERT_GE(extent.range.begin, at) << "twice";
      append(merged, extent);
      at = extent.range.end;
    }
    std::erase_if(extents, [](const Extent& extent) { return extent.kind == Kind::Inherit; });
    ASSERT_EQ(merged, extents) << selection.parts << " parts of " << length;
  }
}

TEST_F(ChainProofTest, OnlyWhatIsAskedFor) {
  for (int round = 0; round < 30; ++round) {
    const std::uint64_t length = kDigestBlock * 20 - random.below(kDigestBlock);
    Selection selection;
    std::set<std::uint64_t> blocks;
    for (std::uint64_t at = random.below(length); at < length + 100000; at += random.between(1, 200000)) {
      const std::uint64_t size = random.between(1, 200000);
      selection.only.push_back(guest_range(at, size));
      for (std::uint64_t block = at / kDigestBlock; block * kDigestBlock < std::min(length, at + size);
           ++block) {
        blocks.insert(block);
      }
    }
    if (selection.only.empty()) continue;
    const Extents whole{{guest_range(0, length), Kind::Data}};
    std::set<std::uint64_t> found;
    for (const Extent& extent : collect(selected(stream(whole), selection, length))) {
      if (extent.kind == Kind::Inherit) continue;
      ASSERT_EQ(extent.range.begin.bytes() % kDigestBlock, 0U);
      for (GuestOffset at = extent.range.begin; at < extent.range.end; at = at + kDigestBlock) {
        ASSERT_TRUE(found.insert(at.bytes() / kDigestBlock).second);
      }
    }
    ASSERT_EQ(found, blocks);
  }
}

// A live disk that counts how often each of its blocks is read.
class Counted : public MemoryDevice {
 public:
  using MemoryDevice::MemoryDevice;
  std::unique_ptr<Reader> open_reader() override {
    class Counting : public Reader {
     public:
      Counting(Counted& disk, std::unique_ptr<Reader> reader) : disk_(disk), reader_(std::move(reader)) {}
      void read(std::span<const ReadRequest> batch) override {
        const std::scoped_lock lock(disk_.mutex_);
        for (const ReadRequest& request : batch) {
          for (GuestOffset at = request.begin; at < request.range().end; at = at + kDigestBlock) {
            EXPECT_EQ(at.bytes() % kDigestBlock, 0U);
            ++disk_.reads[at.bytes() / kDigestBlock];
          }
        }
        reader_->read(batch);
      }

     private:
      Counted& disk_;
      std::unique_ptr<Reader> reader_;
    };
    return std::make_unique<Counting>(*this, MemoryDevice::open_reader());
  }
  std::map<std::uint64_t, int> reads;

 private:
  std::mutex mutex_;
};

// Every block of every layer, and of the live side, is read once over all parts; damage is found by exactly
// one.
TEST_F(ChainProofTest, AllPartsTogetherProveTheWhole) {
  const std::uint64_t size = 5 * Selection::kStripe + 12345;
  ProvenChain chain(random, folder);
  for (int i = 0; i < 2; ++i) {
    Disk disk{Bytes(size), {}};
    if (i > 0) disk.bytes = chain.from_top(0).content();
    for (std::uint64_t at = 0; at < size;) {
      const std::uint64_t length = std::min(size - at, 4096 * random.between(1, 1000));
      const Kind kind =
          random.chance(30) ? Kind::Data : random.one_of({Kind::Zero, Kind::Inherit, Kind::Inherit});
      const std::span<std::byte> bytes = std::span(disk.bytes).subspan(at, length);
      if (kind == Kind::Zero) std::ranges::fill(bytes, std::byte{0});
      if (kind == Kind::Data) std::ranges::fill(bytes, static_cast<std::byte>(random.word()));
      append(disk.extents, {guest_range(at, length), kind});
      at += length;
    }
    chain.add(std::move(disk), {}, Algorithm::Xxh3_128);
  }
  std::vector<Mapping> data;
  for (const Mapping& mapping : chain.open()->map_layer_alone(0, guest_range(0, size))) {
    if (mapping.kind == Kind::Data) data.push_back(mapping);
  }
  Bytes image = read_file(chain.path(0));
  for (int i = 0; i < 20; ++i) {
    const Mapping& mapping = data[random.below(data.size())];
    image.at((mapping.host + random.below(mapping.range.length())).bytes()) ^= std::byte{4};
  }
  write_file(chain.path(0), image);

  const auto opened = chain.open();
  const Bytes& content = chain.from_top(0).content();
  Extents extents;
  for (std::uint64_t at = 0; at < size; at += kDigestBlock) {
    append(extents, {block_at(content, at), random.chance(70) ? Kind::Data : Kind::Inherit});
  }
  for (const unsigned parts : {2U, 3U, 7U}) {
    SCOPED_TRACE(testing::Message() << parts << " parts");
    Proof sum[2];
    std::set<std::uint64_t> damaged[2];
    Comparison compared;
    Counted live(content, {{guest_range(0, size), Kind::Data}}, size);
    std::set<std::uint64_t> different;
    for (unsigned part = 1; part <= parts; ++part) {
      ProofOptions options{random.bits(1, 3), {part, parts, {}}, {}, [](std::uint64_t) {}};
      for (std::size_t layer = 0; layer < 2; ++layer) {
        const Proof proof = prove_one(*opened, layer, options);
        sum[layer].blocks += proof.blocks;
        sum[layer].zero_blocks += proof.zero_blocks;
        sum[layer].partial_blocks += proof.partial_blocks;
        sum[layer].read_bytes += proof.read_bytes;
        for (const Discrepancy& damage : proof.different) {
          for (GuestOffset at = damage.range.begin; at < damage.range.end; at = at + kDigestBlock) {
            EXPECT_TRUE(damaged[layer].insert(at.bytes()).second) << "found twice";
          }
        }
      }
      CompareOptions comparing;
      comparing.algorithm = Algorithm::Xxh3_128;
      comparing.workers = 2;
      comparing.selection = options.selection;
      const Comparison comparison = compare(*opened, live, comparing);
      compared.compared_bytes += comparison.compared_bytes;
      compared.different_bytes += comparison.different_bytes;
      for (const Discrepancy& difference : comparison.different) {
        for (GuestOffset at = difference.range.begin; at < difference.range.end; at = at + kSectorSize) {
          EXPECT_TRUE(different.insert(at.bytes()).second) << "found twice";
        }
      }
    }
    for (std::size_t layer = 0; layer < 2; ++layer) {
      const Proof whole = prove_one(*opened, layer, {});
      EXPECT_EQ(sum[layer].blocks, whole.blocks);
      EXPECT_EQ(sum[layer].zero_blocks, whole.zero_blocks);
      EXPECT_EQ(sum[layer].partial_blocks, whole.partial_blocks);
      EXPECT_EQ(sum[layer].read_bytes, whole.read_bytes);
      std::set<std::uint64_t> all;
      for (const Discrepancy& damage : whole.different) {
        for (GuestOffset at = damage.range.begin; at < damage.range.end; at = at + kDigestBlock)
          all.insert(at.bytes());
      }
      EXPECT_EQ(damaged[layer], all);
      EXPECT_EQ(layer == 0, !all.empty());
    }
    EXPECT_EQ(compared.compared_bytes, align_up(size, kSectorSize));
    EXPECT_EQ(compared.different_bytes, different.size() * kSectorSize);
    for (std::uint64_t block = 0; block * kDigestBlock < size; ++block) {
      const GuestRange range = block_at(content, block * kDigestBlock);
      bool differs = false;
      for (GuestOffset at = range.begin; at < range.end; at = at + kSectorSize)
        differs |= different.contains(at.bytes());
      // A block that differs is read a second time.
      EXPECT_EQ(live.reads[block], differs ? 2 : 1) << "block " << block;
    }
  }
}

TEST_F(ChainProofTest, ADeadlineThatIsOver) {
  ProvenChain chain(random, folder);
  Bytes bytes(kMiB);
  random.fill(bytes);
  chain.add(disk_of(bytes, {{guest_range(0, kMiB), Kind::Data}}), {}, Algorithm::Sha256);
  ProofOptions options = any_options();
  options.deadline = std::chrono::steady_clock::now();
  const LayerProof layer = prove(*chain.open(), options).front();
  EXPECT_EQ(layer.outcome(), Outcome::Incomplete);
  EXPECT_EQ(layer.proof->stopped_at, 0U);
}

// A restore throws for the first block that does not match, and only for such a one.
TEST_F(ChainProofTest, TheGuardOfARestore) {
  for (int round = 0; round < 12; ++round) {
    const ProvenChain chain = any_chain(4, kMiB);
    SCOPED_TRACE(testing::Message() << "round " << round << ": " << chain.description());
    const auto read_guarded = [&](BlockDevice& disk) {
      const auto opened = chain.open();
      const std::unique_ptr<ChainDigests> digests = digests_of(*opened);
      std::uint64_t unknown = 0;
      Pass pass;
      pass.open_reader = [&] { return disk.open_reader(); };
      pass.pieces = pieces_of(as_zeros(normalise(extents_of(disk), kDigestBlock, Position::Bottom)));
      pass.stages = {guard(*opened, *digests, unknown)};
      pass.workers.workers = 2;
      run(pass);
      EXPECT_EQ(unknown, 0U);
    };
    Bytes content = chain.from_top(0).content();
    content.resize(align_up(content.size(), kSectorSize));  // as a device is written
    MemoryDevice good = live_disk(content);
    EXPECT_EQ(outcome_of([&] { read_guarded(good); }), Outcome::Done);
    content[random.chance(30) ? content.size() - 1 : random.below(content.size())] ^= std::byte{1};
    MemoryDevice bad = live_disk(content);
    EXPECT_EQ(outcome_of([&] { read_guarded(bad); }), Outcome::Mismatch);
  }
}

}  // namespace
}  // namespace qchain::tests
