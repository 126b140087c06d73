// Random chains, by QEMU and by us: every byte, the map, and the verdict of the check, on sound chains and
// damaged ones.
//
// Each case has a seed of its own: QCHAIN_SEED=N QCHAIN_CASES=1 repeats case N, QCHAIN_CASES=N runs more than
// the default.

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "qcow2/format.h"
#include "tests/differential/chains.h"
#include "verify/device_digest.h"

namespace qchain::tests {
namespace {

constexpr std::uint64_t kMaxRead = 64 << 20;  // of a disk whose claimed size may be damage

class DifferentialTest : public testing::Test {
 protected:
  // Runs cases until there are enough, or enough of them failed.
  template <class Case>
  void for_each_case(int by_default, Case&& run_case) {
    constexpr int kEnoughFailures = 3;
    const char* const given = std::getenv("QCHAIN_CASES");
    const std::uint64_t cases =
        given != nullptr ? std::strtoull(given, nullptr, 0) : static_cast<std::uint64_t>(rounds(by_default));
    int failures = 0;
    for (std::uint64_t i = 0; i < cases && failures < kEnoughFailures; ++i) {
      Random random(seed() + i);
      const Folder folder;
      const testing::TestInfo& test = *testing::UnitTest::GetInstance()->current_test_info();
      SCOPED_TRACE(
          fmt::format("repeat with QCHAIN_SEED={} QCHAIN_CASES=1 differential_test --gtest_filter={}.{}",
                      seed() + i, test.test_suite_name(), test.name()));
      const int before = failed_parts();
      const RandomChain chain = make_random_chain(random, folder);
      run_case(random, folder, chain);
      if (failed_parts() == before) continue;
      ++failures;
      std::printf("the chain of case %llu:\n  %s\n", static_cast<unsigned long long>(seed() + i),
                  fmt::format("{}", fmt::join(chain.story, "\n  ")).c_str());
    }
    for (const auto& [what, times] : seen_) std::printf("%6d  %s\n", times, what.c_str());
  }

  void see(const std::string& what) { ++seen_[what]; }

 private:
  static int failed_parts() {
    return testing::UnitTest::GetInstance()->current_test_info()->result()->total_part_count();
  }

  std::map<std::string, int> seen_;
};

// The result of the check for one layer alone, whatever is below it.
CheckReport check_of_layer(const RandomChain& chain, std::size_t layer) {
  CheckReport report =
      check_chain(survey(chain.layers[layer], ImageFormat::Qcow2, chain.options()), Payloads::All);
  if (report.layers.size() > 1) report.layers.resize(1);
  return report;
}

class SoundChainTest : public DifferentialTest {
 protected:
  // Batches of requests of any size and place, some of them overlapping.
  static void read_at_random(Random& random, Chain& chain, const Bytes& expected) {
    const std::unique_ptr<Reader> reader = chain.open_reader();
    for (int batch = 0; batch < 5; ++batch) {
      std::vector<Bytes> buffers(random.between(1, 6));
      std::vector<ReadRequest> requests;
      for (Bytes& buffer : buffers) {
        const std::uint64_t begin = random.below(chain.size());
        const std::uint64_t longest = random.one_of<std::uint64_t>({1, 1000, 70000, 1 << 20});
        buffer.resize(random.between(1, std::min(longest, chain.size() - begin)));
        random.fill(buffer);
        requests.push_back({GuestOffset(begin), buffer});
      }
      reader->read(requests);
      for (const ReadRequest& request : requests) {
        const auto part = std::span(expected).subspan(request.begin.bytes(), request.into.size());
        EXPECT_TRUE(std::ranges::equal(request.into, part)) << to_string(request.range());
      }
    }
  }

  static void compare_bytes(Random& random, Chain& chain, const Bytes& expected) {
    ASSERT_EQ(first_difference(content_of(chain), expected), "");
    read_at_random(random, chain, expected);
    DigestOptions options;
    options.algorithm = Algorithm::Xxh3_128;
    options.workers = random.bits(1, 3);
    const std::uint64_t length = chain.top().true_length();
    MemoryDevice flat(expected, {{guest_range(0, expected.size()), Kind::Data}}, 1 << 20);
    EXPECT_EQ(digest_of(chain, length, options), digest_of(flat, length, options));
  }

  // Splits both maps where either changes, and compares the pieces: data or zeros, and the offset of the
  // data. Ignores whether a zero cluster has a host cluster, and how its zeros were made.
  static void compare_maps(const RandomChain& files, const std::vector<Mapping>& map, std::uint64_t size) {
    const auto json = nlohmann::json::parse(
        must({"qemu-img", "map", "--output=json", "-f", files.format_name(), files.top()}));
    auto ours = map.begin();
    std::uint64_t at = 0;
    for (const auto& theirs : json) {
      const std::uint64_t begin = theirs["start"];
      const std::uint64_t end = begin + theirs["length"].get<std::uint64_t>();
      while (at < end) {
        ASSERT_NE(ours, map.end());
        SCOPED_TRACE(
            fmt::format("{}: {} against {}", to_string(ours->range), to_string(ours->kind), theirs.dump()));
        const bool data = ours->kind == Kind::Data;
        ASSERT_EQ(data, theirs["data"].get<bool>());
        if (data) {
          ASSERT_EQ(ours->layer, theirs["depth"].get<std::size_t>());
          ASSERT_EQ(ours->storage == Storage::Plain, theirs.contains("offset"));
        } else {
          ASSERT_TRUE(theirs["zero"].get<bool>());
        }
        if (data && ours->storage == Storage::Plain) {
          const HostOffset host = ours->host + (at - ours->range.begin.bytes());
          ASSERT_EQ(host, HostOffset(theirs["offset"].get<std::uint64_t>() + at - begin));
        }
        at = std::min(end, ours->range.end.bytes());
        if (at == ours->range.end.bytes()) ++ours;
      }
    }
    EXPECT_EQ(at, size);
  }

  // extents() is the map without the places, but for holes of the files, which it passes over. A part of it
  // is the part that is asked for.
  void compare_extents(Random& random, Chain& chain, const std::vector<Mapping>& map, const Bytes& expected) {
    Extents from_map;
    for (const Mapping& mapping : map) {
      append(from_map, {mapping.range, mapping.kind == Kind::Data ? Kind::Data : Kind::Zero});
    }
    const Extents extents = collect(extents_of(chain));
    const ExtentSource holes = zip(stream(extents), stream(from_map), [](Kind ours, Kind of_map) {
      return ours == of_map ? Kind::Inherit : ours;
    });
    for (const Extent& hole : collect(holes)) {
      if (hole.kind == Kind::Inherit) continue;
      see("extents: holes in plain data");
      ASSERT_EQ(hole.kind, Kind::Zero) << to_string(hole.range);
      EXPECT_TRUE(lies_in_plain_data(map, hole.range)) << to_string(hole.range);
      const auto bytes = std::span(expected).subspan(hole.range.begin.bytes(), hole.range.length());
      EXPECT_TRUE(std::ranges::all_of(bytes, [](auto byte) { return byte == decltype(byte){}; }))
          << to_string(hole.range);
    }
    for (int i = 0; i < 10; ++i) {
      const std::uint64_t begin = random.below(chain.size());
      const GuestRange range = guest_range(begin, random.between(1, chain.size() - begin));
      EXPECT_EQ(collect(extents_of(chain, range)), collect(clip(stream(extents), range)));
    }
    LayerUsage of_top;
    for (const Mapping& mapping : map) {
      if (mapping.layer == 0 && mapping.kind == Kind::Data) of_top.data += mapping.range.length();
    }
    EXPECT_EQ(usage_of(chain.top()).data, of_top.data);
    for (const Layer& layer : chain.layers()) {
      const LayerUsage usage = usage_of(layer);
      EXPECT_EQ(usage.data + usage.zero + usage.inherit, layer.virtual_size());
    }
  }

  static bool lies_in_plain_data(const std::vector<Mapping>& map, const GuestRange& range) {
    return std::ranges::all_of(map, [&](const Mapping& mapping) {
      return intersect(mapping.range, range).empty() ||
             (mapping.kind == Kind::Data && mapping.storage == Storage::Plain);
    });
  }

  void compare_checks(const RandomChain& chain) {
    for (std::size_t i = 0; i < chain.layers.size(); ++i) {
      if (chain.is_raw(i)) continue;
      const QemuVerdict qemu = check_by_qemu(chain.layers[i]);
      const CheckReport report = check_of_layer(chain, i);
      const QemuVerdict ours = verdict_of(report);
      QemuVerdict expected = ours;
      if (qemu == QemuVerdict::Corrupt && count(report, Flaw::RefcountStale) != 0) expected = qemu;
      if (qemu == QemuVerdict::Clean && is_damage_that_qemu_misses(report)) expected = qemu;
      EXPECT_EQ(qemu, expected) << chain.layers[i] << ": QEMU says " << to_string(qemu) << ", we say "
                                << to_string(ours) << "\n"
                                << words_of(report);
      see(fmt::format("layers that are {}", to_string(ours)));
    }
  }

  // Prints what a run has tested.
  void see_features(const Chain& chain, const std::vector<Mapping>& map) {
    see(fmt::format("chains of {} layers", chain.layers().size()));
    for (const Layer& layer : chain.layers()) {
      if (layer.image() == nullptr) {
        see("feature: raw base");
        continue;
      }
      const Header& header = layer.image()->header();
      for (const std::string& feature : header.features()) see("feature: " + feature);
      see(fmt::format("feature: version {}", header.version));
      see(fmt::format("feature: clusters of {:7} bytes", layer.image()->geometry().cluster_size()));
      see(fmt::format("feature: refcounts of {:2} bits", 1U << header.refcount_order));
      if ((header.autoclear_features & kAutoclearBitmaps) != 0) see("feature: bitmaps");
    }
    std::set<std::string> storages;
    for (const Mapping& mapping : map) {
      const bool plain = mapping.storage == Storage::Plain;
      if (mapping.kind == Kind::Data) storages.insert(plain ? "plain data" : "compressed data");
      if (mapping.kind == Kind::Zero) storages.insert("zeros");
    }
    for (const std::string& storage : storages) see("map: " + storage);
  }
};

TEST_F(SoundChainTest, AreReadMappedAndCheckedAsByQemu) {
  for_each_case(110, [&](Random& random, const Folder& folder, const RandomChain& files) {
    const std::optional<Bytes> expected = read_by_qemu(files, folder);
    const auto chain = Chain::open(files.top(), files.format, files.options());
    ASSERT_EQ(chain->layers().size(), files.layers.size());
    ASSERT_TRUE(expected.has_value());
    compare_checks(files);
    if (expected->empty()) return;
    compare_bytes(random, *chain, *expected);
    const std::vector<Mapping> map = whole_map(*chain);
    compare_maps(files, map, chain->size());
    compare_extents(random, *chain, map, *expected);
    see_features(*chain, map);
  });
}

class DamagedChainTest : public DifferentialTest {
 protected:
  // Damages a layer or its data file, and returns a description.
  std::string damage(Random& random, DamagedImage& image, const MetadataMap& metadata) {
    if (random.chance(25)) {
      const std::uint64_t most =
          random.chance(50) ? std::min<std::uint64_t>(image.size() - 1, 3000) : image.size() - 1;
      const std::uint64_t lost = random.between(1, most);
      image.truncate(image.size() - lost);
      return fmt::format("{} bytes cut off", lost);
    }
    if (random.chance(15) && metadata.l2.size() > 1) {
      const MetadataMap::Entry& from = metadata.l2[random.below(metadata.l2.size())];
      const MetadataMap::Entry& to = metadata.l2[random.below(metadata.l2.size())];
      image.put(to.at, from.raw);
      return "an L2 entry copied over another";
    }
    const auto [what, word] = place(random, image, metadata);
    unsigned bit = random.bits(0, 63);
    // Not a disk of petabytes.
    if (word == 24) bit %= 22;
    image.flip(word, bit);
    return fmt::format("bit {} of the word at {:#x} flipped: {}", bit, word, what);
  }

  struct Place {
    const char* what;
    std::uint64_t word;
  };
  Place place(Random& random, const DamagedImage& image, const MetadataMap& metadata) {
    const auto entry = [&](const std::vector<MetadataMap::Entry>& entries) {
      return entries[random.below(entries.size())].at;
    };
    switch (random.below(10)) {
      case 0:
        return {"header", random.below(14) * 8};
      case 1:
        return {"header extension", 112 + random.below(40) * 8};
      case 2:
        if (!metadata.l1.empty()) return {"L1 entry", entry(metadata.l1)};
        break;
      case 3:
        return {"refcount table", entry(metadata.refcount_blocks)};
      case 4: {
        const std::uint64_t clusters = image.size() / metadata.cluster_size;
        const std::uint64_t bytes = (clusters << metadata.refcount_order) / 8 + 8;
        const std::uint64_t words = std::min(metadata.cluster_size, bytes) / 8;
        return {"refcount",
                metadata.refcount_blocks.front().raw + random.below(std::max<std::uint64_t>(words, 1)) * 8};
      }
      case 5:
        if (metadata.snapshot_table != 0)
          return {"snapshot table", metadata.snapshot_table + random.below(10) * 8};
        if (metadata.bitmap_directory != 0)
          return {"bitmap directory", metadata.bitmap_directory + random.below(5) * 8};
        break;
      case 6:
        return {"anything", random.below(image.size() / 8) * 8};
      default:
        break;
    }
    std::vector<MetadataMap::Entry> mapped;
    for (const MetadataMap::Entry& candidate : metadata.l2) {
      if (candidate.raw != 0) mapped.push_back(candidate);
    }
    if (mapped.empty()) return {"anything", random.below(image.size() / 8) * 8};
    const std::uint64_t at = entry(mapped);
    if (metadata.extended_l2 && random.chance(40)) return {"subclusters", at + 8};
    return {"L2 entry", at};
  }

  static std::optional<Bytes> read_by_us(const RandomChain& files) {
    try {
      const auto chain = Chain::open(files.top(), files.format, files.options());
      if (chain->size() > kMaxRead) return std::nullopt;
      return content_of(*chain);
    } catch (const Error&) {
      return std::nullopt;
    }
  }

  // What QEMU finds, we find: a corruption as a corruption, a leak at least as one.
  void compare_checks(const RandomChain& files, std::size_t layer, const std::string& what) {
    const QemuVerdict qemu = check_by_qemu(files.layers[layer]);
    const CheckReport report = check_of_layer(files, layer);
    const QemuVerdict ours = verdict_of(report);
    see(fmt::format("check: QEMU {}, we {}", to_string(qemu), to_string(ours)));
    if (is_missed(qemu, report)) {
      ADD_FAILURE() << files.layers[layer] << ", " << what << ": QEMU says " << to_string(qemu) << ", we say "
                    << to_string(ours) << "\n"
                    << words_of(report)
                    << run({"qemu-img", "check", "-f", "qcow2", files.layers[layer]}).output;
    }
  }

  // If both return data, it is equal; if QEMU returns none, our check reports the layer.
  void compare_bytes(const RandomChain& files, const Folder& folder, std::size_t layer,
                     const std::string& what) {
    const std::optional<Bytes> ours = read_by_us(files);
    if (!ours) {
      see("read: refused by us");
      return;
    }
    const std::optional<Bytes> qemu = read_by_qemu(files, folder);
    see(qemu ? "read: by both" : "read: refused by QEMU alone");
    if (qemu) {
      EXPECT_EQ(first_difference(*ours, *qemu), "") << files.layers[layer] << ", " << what;
    } else {
      EXPECT_NE(verdict_of(check_of_layer(files, layer)), QemuVerdict::Clean)
          << files.layers[layer] << ", " << what << ": QEMU does not read it";
    }
  }
};

// Whatever is done to the metadata: an answer or an Error, in bounded time and memory.
TEST_F(DamagedChainTest, AnyDamageEndsInAnswersOrErrors) {
  for_each_case(12, [&](Random& random, const Folder&, const RandomChain& files) {
    const std::size_t layer = random.below(files.layers.size());
    if (files.is_raw(layer)) return;
    DamagedImage image(files.layers[layer]);
    const MetadataMap metadata(image);
    for (int round = 0; round < 20; ++round) {
      for (std::uint64_t hits = random.between(1, 6); hits > 0; --hits) {
        // Into the header, the L1 table or anything.
        const std::uint64_t at =
            random.one_of<std::uint64_t>({random.below(14) * 8, metadata.l1_table + random.below(8) * 8,
                                          random.below(image.size() / 8) * 8});
        image.flip(at, random.bits(0, 63));
      }
      const Outcome outcome = outcome_of([&] {
        check_chain(survey(files.top(), files.format, files.options()), Payloads::All);
        const auto chain = Chain::open(files.top(), files.format, files.options());
        Bytes some(std::min<std::uint64_t>(chain->size(), 1 << 20));
        const ReadRequest request{GuestOffset(0), some};
        if (!some.empty()) chain->open_reader()->read(std::span(&request, 1));
        GuestRange rest = guest_range(0, chain->size());
        for (int i = 0; i < 5 && !rest.empty(); ++i) rest.begin = chain->map(rest).back().range.end;
      });
      EXPECT_TRUE(outcome == Outcome::Done || outcome == Outcome::Mismatch ||
                  outcome == Outcome::Incomplete || outcome == Outcome::Io)
          << to_string(outcome);
      see(fmt::format("any damage: {}", to_string(outcome)));
      image.restore();
    }
  });
}

TEST_F(DamagedChainTest, WhatQemuFindsIsFoundAndNoByteIsMadeUp) {
  for_each_case(36, [&](Random& random, const Folder& folder, const RandomChain& files) {
    for (int k = 0; k < 10; ++k) {
      const std::size_t layer = random.below(files.layers.size());
      if (files.is_raw(layer)) continue;
      DamagedImage image(files.layers[layer]);
      const MetadataMap metadata(image);
      const std::string what = damage(random, image, metadata);
      compare_checks(files, layer, what);
      compare_bytes(files, folder, layer, what);
      image.restore();
    }
    for (const std::string& data : files.data_files) {
      DamagedImage image(data);
      if (image.size() < 2) continue;
      image.truncate(random.between(1, image.size() - 1));
      const std::size_t layer = static_cast<std::size_t>(
          std::ranges::find(files.layers, data.substr(0, data.size() - 5)) - files.layers.begin());
      compare_bytes(files, folder, layer, "its data file cut");
      image.restore();
    }
  });
}

}  // namespace
}  // namespace qchain::tests
