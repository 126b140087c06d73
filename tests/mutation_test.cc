// Damage, one byte at a time, to every file of a chain: whatever changes the disk at any restore point is
// found.
//
// QCHAIN_MUTATIONS=NUMBER sets how many bytes of each file are changed, in each of three classes; "all"
// changes every byte of the metadata and of the manifests.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>

#include "tests/proven_chain.h"
#include "tests/random.h"
#include "tests/support.h"
#include "verify/check.h"
#include "verify/chain_proof.h"

namespace qchain::tests {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMiB = 1 << 20;

// How many mutations of a class; nothing for all.
std::optional<std::size_t> wanted() {
  constexpr std::size_t kUsual = 12;
  constexpr std::size_t kInSoak = 1000;
  const char* const given = std::getenv("QCHAIN_MUTATIONS");
  if (given == nullptr) return soaking() ? kInSoak : kUsual;
  if (std::string_view(given) == "all") return std::nullopt;
  return std::strtoull(given, nullptr, 10);
}

class MutationTest : public RandomTest {
 protected:
  // Three layers, with blocks of all kinds in each: whole, partly held, zeros.
  void build(const std::vector<LayerOptions>& options, std::uint64_t size, Algorithm algorithm) {
    for (const LayerOptions& layer : options) {
      chain.add(chain.next_disk(size, chain.layers().empty() ? 65536 : 4096 * random.between(1, 6)), layer,
                algorithm);
    }
    for (std::size_t i = 0; i < chain.layers().size(); ++i) {
      for (const std::string& path : {chain.path(i), chain.manifest(i)}) original[path] = read_file(path);
    }
    ASSERT_EQ(verdict(), Outcome::Done);
  }

  // The outcome of `qchain verify`.
  Outcome verdict() {
    Outcome outcome = Outcome::Done;
    try {
      {
        const Survey surveyed = survey(chain.path(0), ImageFormat::Qcow2, {});
        outcome = check_chain(surveyed, Payloads::Doubtful).outcome(false);
        if (!surveyed.problems.empty()) return outcome;
      }
      for (const LayerProof& layer : prove(*chain.open())) outcome = worse(outcome, layer.outcome());
    } catch (const Error& error) {
      outcome = worse(outcome, error.outcome());
    }
    return outcome;
  }

  // Whether any restore point that can be read has changed.
  bool is_changed() {
    for (std::size_t i = 0; i < chain.layers().size(); ++i) {
      try {
        const auto disk = chain.open(i);
        Bytes expected = chain.from_top(i).content();
        expected.resize(align_up(expected.size(), kSectorSize));
        if (content_of(*disk) != expected) return true;
      } catch (const Error&) {  // refused, so no wrong data is returned
      }
    }
    return false;
  }

  // Checks the outcome after a change to `path`; the caller restores the file.
  void expect_found(const std::string& path, const std::string& what) {
    const Outcome outcome = verdict();
    ++count[outcome];
    const bool is_manifest = path.ends_with(".manifest");
    if (outcome == Outcome::Done && !is_manifest) harmless.push_back(what);
    if (is_manifest) {
      EXPECT_EQ(outcome, Outcome::BadManifest) << path << ": " << what;
    } else if (outcome != Outcome::Mismatch && outcome != Outcome::BadManifest) {
      EXPECT_FALSE(is_changed()) << path << ": " << what << ": ends with " << to_string(outcome);
    }
  }

  void flip(const std::string& path, std::uint64_t at, std::byte bits) {
    const int descriptor = open(path.c_str(), O_RDWR | O_CLOEXEC);
    const File file(descriptor, path);
    const std::byte was = original.at(path).at(at);
    const std::byte now = was ^ bits;
    file.write(HostOffset(at), std::span(&now, 1));
    expect_found(path, "byte " + std::to_string(at) + " from " + std::to_string(std::to_integer<int>(was)) +
                           " to " + std::to_string(std::to_integer<int>(now)));
    file.write(HostOffset(at), std::span(&was, 1));
  }

  std::byte any_bits() {
    return random.chance(70) ? std::byte{1} << random.below(8)
                             : static_cast<std::byte>(random.between(1, 255));
  }

  // The host clusters in which a layer's data is.
  std::set<std::uint64_t> data_clusters(std::size_t index) {
    const auto opened = chain.open();
    const Layer& layer = opened->layers()[index];
    const std::uint64_t cluster = layer.image()->geometry().cluster_size();
    std::set<std::uint64_t> clusters;
    for (const Mapping& mapping : opened->map_layer_alone(index, guest_range(0, layer.virtual_size()))) {
      if (mapping.storage == Storage::None) continue;
      const std::uint64_t first = mapping.host.bytes() / cluster;
      const std::uint64_t end = divide_up((mapping.host + mapping.range.length()).bytes(), cluster);
      for (std::uint64_t i = first; i < end; ++i) clusters.insert(i);
    }
    return clusters;
  }

  void flip_some(const std::string& path, std::vector<std::uint64_t> places) {
    std::ranges::shuffle(places, engine);
    if (wanted()) places.resize(std::min(places.size(), *wanted()));
    for (const std::uint64_t at : places) {
      flip(path, at, any_bits());
      if (HasFailure()) return;  // one failure is enough
    }
  }

  // Nonzero bytes of the metadata, zero bytes of it, and data.
  void mutate_all() {
    for (std::size_t i = 0; i < chain.layers().size(); ++i) {
      const Bytes& image = original.at(chain.path(i));
      const std::set<std::uint64_t> data = data_clusters(i);
      const std::uint64_t cluster = std::uint64_t{1} << chain.from_top(i).options.cluster_bits;
      std::vector<std::uint64_t> classes[3];
      for (std::uint64_t at = 0; at < image.size(); ++at) {
        const bool is_data = data.contains(at / cluster);
        const bool is_zero = image[at] == std::byte{0} && at > 112;
        classes[is_data ? 2 : is_zero ? 1 : 0].push_back(at);
      }
      if (!wanted()) {
        std::ranges::shuffle(classes[2], engine);
        classes[2].resize(std::min<std::size_t>(classes[2].size(), 3000));
      }
      for (const std::vector<std::uint64_t>& places : classes) flip_some(chain.path(i), places);
      std::vector<std::uint64_t> manifest(original.at(chain.manifest(i)).size());
      for (std::size_t at = 0; at < manifest.size(); ++at) manifest[at] = at;
      flip_some(chain.manifest(i), manifest);
    }
    std::printf("%zu mutations; found as a mismatch %zu, a bad manifest %zu, otherwise %zu; harmless %zu\n",
                total(), count[Outcome::Mismatch], count[Outcome::BadManifest],
                total() - count[Outcome::Mismatch] - count[Outcome::BadManifest] - count[Outcome::Done],
                count[Outcome::Done]);
  }

  std::size_t total() const {
    std::size_t sum = 0;
    for (const auto& [outcome, number] : count) sum += number;
    return sum;
  }

  LayerOptions clusters(unsigned bits) {
    LayerOptions options;
    options.cluster_bits = bits;
    return options;
  }

  Folder folder;
  ProvenChain chain{random, folder};
  std::map<std::string, Bytes> original;
  std::map<Outcome, std::size_t> count;
  std::vector<std::string> harmless;
  std::mt19937_64 engine{seed()};
};

TEST_F(MutationTest, OneByteOfClustersOf64K) {
  build({clusters(16), clusters(16), clusters(16)}, kMiB, Algorithm::Sha256);
  mutate_all();
}

TEST_F(MutationTest, OneByteOfClustersOf4K) {
  build({clusters(12), clusters(12), clusters(12)}, kMiB + 12345, Algorithm::Xxh3_128);
  mutate_all();
}

TEST_F(MutationTest, OneByteOfOtherLayers) {
  LayerOptions compressed = clusters(13);
  compressed.compression = parse_compression("zlib:1");
  LayerOptions subclusters = clusters(16);
  subclusters.extended_l2 = true;
  build({compressed, subclusters, clusters(14)}, kMiB, Algorithm::Xxh3_128);
  mutate_all();
}

// Sectors that were lost, or written where they do not belong; files that end too early.
TEST_F(MutationTest, TornFiles) {
  build({clusters(12), clusters(16), clusters(12)}, kMiB, Algorithm::Xxh3_128);
  const std::size_t rounds = 3 * wanted().value_or(1000);
  for (std::size_t round = 0; round < rounds && !HasFailure(); ++round) {
    const auto& [path, bytes] =
        *std::next(original.begin(), static_cast<std::ptrdiff_t>(random.below(original.size())));
    Bytes now = bytes;
    std::string what;
    const std::uint64_t length = random.one_of<std::uint64_t>({512, 512, 4096, 65536});
    const std::uint64_t at = align_down(random.below(now.size()), random.chance(80) ? 512 : 1);
    const std::uint64_t common = std::min<std::uint64_t>(length, now.size() - at);
    switch (random.below(4)) {
      case 0:
        now.resize(at);
        what = "ends at " + std::to_string(at);
        break;
      case 1:
        std::ranges::fill(std::span(now).subspan(at, common), std::byte{0});
        what = "zeros at " + std::to_string(at);
        break;
      default: {
        const Bytes& from =
            std::next(original.begin(), static_cast<std::ptrdiff_t>(random.below(original.size())))->second;
        const std::uint64_t source = align_down(random.below(from.size()), 512);
        const std::uint64_t copied = std::min<std::uint64_t>(common, from.size() - source);
        std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(source), copied,
                    now.begin() + static_cast<std::ptrdiff_t>(at));
        what = std::to_string(copied) + " bytes from " + std::to_string(source) + " at " + std::to_string(at);
      }
    }
    if (now == bytes) continue;
    write_file(path, now);
    expect_found(path, what);
    write_file(path, bytes);
  }
}

// Changes that are harmless for us are harmless for QEMU too.
TEST_F(MutationTest, QemuAgreesThatItIsHarmless) {
  build({clusters(16), clusters(12), clusters(16)}, kMiB, Algorithm::Xxh3_128);
  constexpr std::size_t kChecked = 12;
  std::size_t checked = 0;
  for (int tries = 0; tries < 1000 && checked < kChecked; ++tries) {
    const std::size_t index = random.below(chain.layers().size());
    const std::string path = chain.path(index);
    Bytes now = original.at(path);
    const std::uint64_t cluster = std::uint64_t{1} << chain.from_top(index).options.cluster_bits;
    // The header and the tables after it; not the unused space after those.
    const std::uint64_t at =
        random.chance(70) ? random.below(800) : random.below(5) * cluster + random.below(200);
    if (at >= now.size()) continue;
    now[at] ^= any_bits();
    write_file(path, now);
    if (verdict() == Outcome::Done) {
      ++checked;
      for (const std::size_t point : {std::size_t{0}, index}) {
        EXPECT_EQ(first_difference(content_by_qemu(chain.path(point)), chain.from_top(point).content()), "")
            << path << ": byte " << at << " is now " << std::to_integer<int>(now[at]);
      }
    }
    write_file(path, original.at(path));
  }
  EXPECT_EQ(checked, kChecked);
}

}  // namespace
}  // namespace qchain::tests
