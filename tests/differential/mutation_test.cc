// Flips every bit of the metadata of a chain that we wrote, one at a time: each flip is refused, reported, or
// changes no byte of the disk. Flips that only a manifest can detect are listed here.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "qcow2/format.h"
#include "tests/check/images.h"
#include "tests/random.h"
#include "tests/support.h"

namespace qchain::tests {
namespace {

constexpr std::uint64_t kMaxRead = 64 << 20;  // of a disk whose size was changed

// The effect of a flip, from best to worst.
enum class Effect : std::uint8_t {
  Refused,   // the chain cannot be opened or read
  Reported,  // the check finds something
  Harmless,  // the disk is unchanged
  Longer,    // undetected; the disk is unchanged except for the length of its last sector
  Silent,    // undetected; the disk has changed
};
constexpr std::array<const char*, 5> kEffects{"refused", "reported", "harmless", "LENGTH", "SILENT"};

// What has to be detected.
enum class MustDetect : std::uint8_t {
  DiskChange,  // changes of the content of the disk
  AnyChange,   // all changes: QEMU would destroy data with the next write
};

// Bits of one layer that mean one thing.
struct Field {
  std::string name;
  std::uint64_t at = 0;  // offset in the file
  std::uint64_t bytes = 0;
  MustDetect must_detect = MustDetect::DiskChange;
};

// A flip that yields another valid chain.
struct Exception {
  const char* field;   // the beginning of its name
  std::uint64_t bits;  // of a field of 8 bytes; of others, all or none
  Effect worst;
  const char* why;
  int times = 0;  // each exception has to occur
};

class ManifestOnlyExceptions {
 public:
  bool allow(const std::string& field, std::uint64_t bit, Effect effect) {
    for (Exception& exception : exceptions_) {
      if (!field.starts_with(exception.field) || effect > exception.worst) continue;
      if (exception.bits != kAny && (exception.bits >> bit & 1) == 0) continue;
      ++exception.times;
      return true;
    }
    return false;
  }

  // Fails for exceptions that did not occur.
  void expect_used(const std::vector<std::string>& fields) const {
    for (const Exception& exception : exceptions_) {
      const bool expected = std::ranges::any_of(
          fields, [&](const std::string& field) { return std::string(exception.field).starts_with(field); });
      EXPECT_EQ(exception.times != 0, expected) << exception.field << ": " << exception.why;
    }
  }

 private:
  static constexpr std::uint64_t kAny = ~std::uint64_t{0};
  static constexpr std::uint64_t kZeroFlag = 1;

  std::vector<Exception> exceptions_{
      {"virtual size", kAny, Effect::Silent, "a disk of any size that the L1 table covers is valid"},
      {"L2 entry: data", kZeroFlag, Effect::Silent, "a zero cluster may keep its host cluster"},
      {"L2 entry: unallocated", kZeroFlag, Effect::Silent, "a zero cluster needs no host cluster"},
      {"L2 entry: zeros", kZeroFlag, Effect::Silent, "and without the flag it is unallocated"},
      {"subclusters: data", kAny, Effect::Silent, "a host cluster need not be allocated as a whole"},
      {"subclusters: unallocated", kAny, Effect::Silent, "zero subclusters need no host cluster"},
      {"subclusters: zeros", kAny, Effect::Silent, "and without their bits they are unallocated"},
      {"extension 5143484E: id", kAny, Effect::Longer, "an image without an identity has whole sectors"},
      {"extension 5143484E: data", kAny, Effect::Longer,
       "the identity knows where in the last sector the disk ends"},
  };
};

class MutationTest : public RandomTest {
 protected:
  struct Disk {
    std::uint64_t length = 0;  // its true one, which ends in the last sector
    Bytes bytes;               // whole sectors
  };

  // A chain of three layers, with all combinations of what they can hold of a cluster.
  void write_chain(const std::vector<LayerOptions>& layers) {
    const std::vector<std::uint64_t> grains = [] {
      std::vector<std::uint64_t> all(36, 1024);
      all.insert(all.end(), 12, 16384);
      return all;
    }();
    std::uint64_t size = 0;
    for (const std::uint64_t grain : grains) size += grain;
    size -= 100;  // no whole sectors
    Bytes disk(size);
    Identity parent;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      Extents extents;
      std::uint64_t at = 0;
      for (std::size_t g = 0; g < grains.size(); ++g) {
        const std::uint64_t length = std::min(grains[g], size - at);
        const std::size_t choice = i == 0 ? (g % 2) * 2 : (i == 1 ? g / 2 : g / 6) % 3;
        const Kind kind = std::array{Kind::Inherit, Kind::Zero, Kind::Data}[choice];
        const std::span<std::byte> bytes = std::span(disk).subspan(at, length);
        if (kind == Kind::Zero) std::ranges::fill(bytes, std::byte{0});
        if (kind == Kind::Data) {
          random.fill(bytes);
          for (std::byte& byte : bytes) byte &= g % 5 == 0 ? std::byte{0xFF} : std::byte{0x13};
        }
        append(extents, {guest_range(at, length), kind});
        at += length;
      }
      parent = write(i, layers[i], MemoryDevice(disk, extents, size), parent);
    }
    before_ = read();
  }

  std::string path(std::size_t layer) const { return folder_ / fmt::format("layer{}", layer); }
  std::string top() const { return path(2); }

  // All pointers, found independently of the code under test.
  static std::vector<Field> fields_of(const DamagedImage& image, bool extensions) {
    std::vector<Field> fields = header_fields();
    if (extensions) add_extensions(image, fields);
    const MetadataMap metadata(image);
    add_tables(image, metadata, fields);
    add_refcounts(image, metadata, fields);
    return fields;
  }

  // Flips every bit of the fields of a layer; of its extensions, where they are something new. Without a soak
  // the lowest bit of each field, and every fifth of all others.
  void mutate(std::size_t layer, bool extensions) {
    DamagedImage image(path(layer));
    std::uint64_t others = 0;
    for (const Field& field : fields_of(image, extensions)) {
      for (std::uint64_t bit = 0; bit < field.bytes * 8; ++bit) {
        if (!soaking() && bit != 0 && ++others % 5 != 0) continue;
        const std::uint64_t at = field.at + field.bytes - 1 - bit / 8;
        image.put(at, image.number(at, 1) ^ (std::uint64_t{1} << bit % 8), 1);
        expect_detected(layer, field, bit, effect_on_chain(field.must_detect));
        image.restore();
      }
    }
  }

  void show() const {
    std::printf("%-34s", "");
    for (const char* const effect : kEffects) std::printf("%10s", effect);
    for (const auto& [field, effects] : seen_) {
      std::printf("\n%-34s", field.c_str());
      for (const int times : effects) std::printf("%10d", times);
    }
    std::printf("\n");
  }

 private:
  Identity write(std::size_t layer, LayerOptions options, MemoryDevice device, const Identity& parent) {
    options.position = layer == 0 ? Position::Bottom : Position::Overlay;
    const File file = create_file(path(layer));
    WrittenLayer written = write_layer(device, file, options);
    Identity identity;
    identity.id = random_uuid();
    identity.checkpoint = fmt::format("check{}", layer);
    identity.length = device.size();
    identity.time = "2024-01-01T00:00:00Z";
    identity.tool = "qchain";
    if (layer != 0) {
      identity.overlay = true;
      identity.parent_id = parent.id;
      identity.since = parent.checkpoint;
      written.header.backing_name = fmt::format("layer{}", layer - 1);
      written.header.backing_format = "qcow2";
    }
    written.header.identity = encode_identity(identity);
    if (layer == 1) written.header.other_extensions = {{0x6803F857, feature_names()}};
    write_header(file, written.header);
    return identity;
  }

  // As QEMU adds them to an image that it writes to.
  static std::string feature_names() {
    std::string table;
    for (const auto& [bit, name] : {std::pair{0, "dirty bit"}, std::pair{1, "corrupt bit"}}) {
      std::string entry(48, '\0');
      entry[1] = static_cast<char>(bit);
      entry.replace(2, std::strlen(name), name);
      table += entry;
    }
    return table;
  }

  static std::vector<Field> header_fields() {
    return {{"magic", 0, 4},
            {"version", 4, 4},
            {"backing name offset", 8, 8},
            {"backing name length", 16, 4},
            {"cluster bits", 20, 4},
            {"virtual size", 24, 8},
            {"encryption", 32, 4},
            {"L1 size", 36, 4},
            {"L1 offset", 40, 8},
            {"refcount table offset", 48, 8},
            {"refcount table clusters", 56, 4},
            {"snapshot count", 60, 4},
            {"snapshot table offset", 64, 8},
            {"incompatible features", 72, 8},
            {"compatible features", 80, 8},
            {"autoclear features", 88, 8},
            {"refcount order", 96, 4},
            {"header length", 100, 4},
            {"compression type", 104, 1},
            {"header padding", 105, 7}};
  }

  static void add_extensions(const DamagedImage& image, std::vector<Field>& fields) {
    std::uint64_t at = sizeof(HeaderV3);
    for (bool more = true; more;) {
      const std::uint64_t id = image.number(at, 4);
      const std::uint64_t length = image.number(at + 4, 4);
      const std::string name = fmt::format("extension {:08X}", id);
      fields.push_back({name + ": id", at, 4});
      fields.push_back({name + ": length", at + 4, 4});
      fields.push_back({name + ": data", at + 8, align_up(length, 8)});
      at += 8 + align_up(length, 8);
      more = id != 0;
    }
    const std::uint64_t name_length = image.number(16, 4);
    fields.push_back({"backing name", at, name_length});
    fields.push_back({"behind the header", at + name_length, 8});
  }

  // Entries of a kind are all alike: three of each.
  static void add_some(const std::string& name, const std::vector<std::uint64_t>& places, std::uint64_t bytes,
                       MustDetect must_detect, std::vector<Field>& fields) {
    if (places.empty()) return;
    std::vector<std::uint64_t> some{places.front(), places[places.size() / 2], places.back()};
    some.erase(std::unique(some.begin(), some.end()), some.end());
    for (const std::uint64_t at : some) fields.push_back({name, at, bytes, must_detect});
  }

  static void add_tables(const DamagedImage& image, const MetadataMap& metadata, std::vector<Field>& fields) {
    for (const MetadataMap::Entry& entry : metadata.l1)
      fields.push_back({"L1 entry", entry.at, 8, MustDetect::AnyChange});
    fields.push_back({"behind the L1 table", metadata.l1_table + image.number(36, 4) * 8, 8});
    std::map<std::string, std::vector<std::uint64_t>> places;
    for (const MetadataMap::Entry& entry : metadata.l2) {
      const std::uint64_t bitmap = metadata.extended_l2 ? image.word(entry.at + 8) : 0;
      std::string kind = "unallocated";
      if (entry.guest >= metadata.disk) {
        kind = "past the disk's end";
      } else if (metadata.is_compressed(entry)) {
        kind = "compressed";
      } else if (metadata.host(entry) != 0) {
        kind = "data";
      } else if (entry.raw != 0 || bitmap != 0) {
        kind = "zeros";
      }
      places[kind].push_back(entry.at);
    }
    for (const auto& [kind, all] : places) {
      add_some("L2 entry: " + kind, all, 8,
               kind == "data" && !metadata.extended_l2 ? MustDetect::AnyChange : MustDetect::DiskChange,
               fields);
      if (!metadata.extended_l2) continue;
      std::vector<std::uint64_t> bitmaps = all;
      for (std::uint64_t& at : bitmaps) at += 8;
      add_some("subclusters: " + kind, bitmaps, 8, MustDetect::DiskChange, fields);
    }
  }

  static void add_refcounts(const DamagedImage& image, const MetadataMap& metadata,
                            std::vector<Field>& fields) {
    fields.push_back({"refcount table entry", metadata.refcount_table, 8, MustDetect::AnyChange});
    fields.push_back({"refcount table entry, unused", metadata.refcount_table + 8, 8, MustDetect::AnyChange});
    std::vector<std::uint64_t> places;
    const std::uint64_t clusters = image.size() / metadata.cluster_size;
    for (std::uint64_t i = 0; i < clusters; ++i) {
      fields.push_back(
          {"refcount", metadata.refcount_at(i * metadata.cluster_size), 2, MustDetect::AnyChange});
    }
    fields.push_back({"refcount past the end", metadata.refcount_at(clusters * metadata.cluster_size), 2,
                      MustDetect::AnyChange});
  }

  Disk read() const {
    const auto chain = Chain::open(top(), ImageFormat::Qcow2, {});
    if (chain->size() > kMaxRead) return {chain->top().true_length(), {}};
    return {chain->top().true_length(), content_of(*chain)};
  }

  // The check runs where it can matter.
  Effect effect_on_chain(MustDetect must_detect) const {
    const Survey found = survey(top(), ImageFormat::Qcow2, {});
    if (!found.problems.empty()) return Effect::Refused;
    const Effect effect = effect_on_disk();
    if (effect <= Effect::Harmless && must_detect == MustDetect::DiskChange) return effect;
    return check_chain(found, Payloads::All).outcome(true) != Outcome::Done ? Effect::Reported : effect;
  }

  Effect effect_on_disk() const {
    try {
      const Disk now = read();
      if (now.bytes != before_.bytes) return Effect::Silent;
      return now.length == before_.length ? Effect::Harmless : Effect::Longer;
    } catch (const Error&) {
      return Effect::Refused;
    }
  }

  void expect_detected(std::size_t layer, const Field& field, std::uint64_t bit, Effect effect) {
    ++seen_[field.name][static_cast<std::size_t>(effect)];
    const bool wrong = effect > Effect::Harmless ||
                       (effect == Effect::Harmless && field.must_detect == MustDetect::AnyChange);
    if (!wrong || exceptions_.allow(field.name, bit, effect)) return;
    ADD_FAILURE() << "layer " << layer << ", " << field.name << " at " << field.at << ", bit " << bit << ": "
                  << kEffects[static_cast<std::size_t>(effect)];
  }

  Folder folder_;
  Disk before_;
  std::map<std::string, std::array<int, kEffects.size()>> seen_;

 protected:
  ManifestOnlyExceptions exceptions_;
};

LayerOptions layer_with(unsigned cluster_bits, const char* compression = "none", bool extended_l2 = false) {
  LayerOptions options;
  options.cluster_bits = cluster_bits;
  options.compression = parse_compression(compression);
  options.extended_l2 = extended_l2;
  return options;
}

TEST_F(MutationTest, StandardEntries) {
  write_chain({layer_with(12), layer_with(12, "zlib"), layer_with(14, "zstd")});
  for (std::size_t layer = 0; layer < 3; ++layer) mutate(layer, true);
  show();
  exceptions_.expect_used({"virtual size", "L2 entry", "extension"});
}

TEST_F(MutationTest, ExtendedEntries) {
  write_chain({layer_with(14), layer_with(14, "none", true), layer_with(14, "zstd", true)});
  for (std::size_t layer = 1; layer < 3; ++layer) mutate(layer, false);
  show();
  exceptions_.expect_used({"virtual size", "subclusters"});
}

}  // namespace
}  // namespace qchain::tests
