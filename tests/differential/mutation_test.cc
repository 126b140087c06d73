// Every bit of the metadata of a chain that we wrote, flipped one at a time: each flip is refused, reported,
// or changes no byte of the disk. What only a manifest can tell is listed here, and nothing else gets
// through.

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

// What became of the chain, from best to worst.
enum class Fate : std::uint8_t {
  Refused,   // it is not opened, or not read
  Reported,  // the check finds something
  Harmless,  // the disk is as before
  Longer,    // nothing is said, and the disk is as before but for the length of its last sector
  Silent,    // nothing is said, and the disk is another
};
constexpr std::array<const char*, 5> kFates{"refused", "reported", "harmless", "LENGTH", "SILENT"};

// How much has to be noticed.
enum class Duty : std::uint8_t {
  Disk,   // what changes the disk
  Every,  // any change: QEMU would destroy data with the next write
};

// Bits of one layer that mean one thing.
struct Field {
  std::string name;
  std::uint64_t at = 0;  // offset in the file
  std::uint64_t bytes = 0;
  Duty duty = Duty::Disk;
};

// A flip that makes another chain that somebody may have meant.
struct Exception {
  const char* field;   // the beginning of its name
  std::uint64_t bits;  // of a field of 8 bytes; of others, all or none
  Fate worst;
  const char* why;
  int times = 0;  // each exception has to be met, or it is none
};

class OnlyAManifestCanTell {
 public:
  bool excuses(const std::string& field, std::uint64_t bit, Fate fate) {
    for (Exception& exception : exceptions_) {
      if (!field.starts_with(exception.field) || fate > exception.worst) continue;
      if (exception.bits != kAny && (exception.bits >> bit & 1) == 0) continue;
      ++exception.times;
      return true;
    }
    return false;
  }

  // So that the list says no more than it must.
  void expect_met(const std::vector<std::string>& fields) const {
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
      {"virtual size", kAny, Fate::Silent, "a disk of any size that the L1 table covers is valid"},
      {"L2 entry: data", kZeroFlag, Fate::Silent, "a zero cluster may keep its host cluster"},
      {"L2 entry: unallocated", kZeroFlag, Fate::Silent, "a zero cluster needs no host cluster"},
      {"L2 entry: zeros", kZeroFlag, Fate::Silent, "and without the flag it is unallocated"},
      {"subclusters: data", kAny, Fate::Silent, "a host cluster need not be allocated as a whole"},
      {"subclusters: unallocated", kAny, Fate::Silent, "zero subclusters need no host cluster"},
      {"subclusters: zeros", kAny, Fate::Silent, "and without their bits they are unallocated"},
      {"extension 5143484E: id", kAny, Fate::Longer, "an image without an identity has whole sectors"},
      {"extension 5143484E: data", kAny, Fate::Longer,
       "the identity knows where in the last sector the disk ends"},
  };
};

class MutationTest : public RandomTest {
 protected:
  struct Disk {
    std::uint64_t length = 0;  // its true one, which ends in the last sector
    Bytes bytes;               // whole sectors
  };

  // A chain of three layers, with all combinations of what they can hold of a place.
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

  // All that points to something, as a reading of its own finds it.
  static std::vector<Field> fields_of(const Patient& image, bool extensions) {
    std::vector<Field> fields = header_fields();
    if (extensions) add_extensions(image, fields);
    const Anatomy anatomy(image);
    add_tables(image, anatomy, fields);
    add_refcounts(image, anatomy, fields);
    return fields;
  }

  // Flips every bit of the fields of a layer; of its extensions, where they are something new.
  void mutate(std::size_t layer, bool extensions) {
    Patient image(path(layer));
    for (const Field& field : fields_of(image, extensions)) {
      for (std::uint64_t bit = 0; bit < field.bytes * 8; ++bit) {
        const std::uint64_t at = field.at + field.bytes - 1 - bit / 8;
        image.put(at, image.number(at, 1) ^ (std::uint64_t{1} << bit % 8), 1);
        judge(layer, field, bit, fate_of_chain(field.duty));
        image.heal();
      }
    }
  }

  void show() const {
    std::printf("%-34s", "");
    for (const char* const fate : kFates) std::printf("%10s", fate);
    for (const auto& [field, fates] : seen_) {
      std::printf("\n%-34s", field.c_str());
      for (const int times : fates) std::printf("%10d", times);
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

  static void add_extensions(const Patient& image, std::vector<Field>& fields) {
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
                       Duty duty, std::vector<Field>& fields) {
    if (places.empty()) return;
    std::vector<std::uint64_t> some{places.front(), places[places.size() / 2], places.back()};
    some.erase(std::unique(some.begin(), some.end()), some.end());
    for (const std::uint64_t at : some) fields.push_back({name, at, bytes, duty});
  }

  static void add_tables(const Patient& image, const Anatomy& anatomy, std::vector<Field>& fields) {
    for (const Anatomy::Entry& entry : anatomy.l1) fields.push_back({"L1 entry", entry.at, 8, Duty::Every});
    fields.push_back({"behind the L1 table", anatomy.l1_table + image.number(36, 4) * 8, 8});
    std::map<std::string, std::vector<std::uint64_t>> places;
    for (const Anatomy::Entry& entry : anatomy.l2) {
      const std::uint64_t bitmap = anatomy.extended_l2 ? image.word(entry.at + 8) : 0;
      std::string kind = "unallocated";
      if (entry.guest >= anatomy.disk) {
        kind = "past the disk's end";
      } else if (anatomy.is_compressed(entry)) {
        kind = "compressed";
      } else if (anatomy.host(entry) != 0) {
        kind = "data";
      } else if (entry.raw != 0 || bitmap != 0) {
        kind = "zeros";
      }
      places[kind].push_back(entry.at);
    }
    for (const auto& [kind, all] : places) {
      add_some("L2 entry: " + kind, all, 8, kind == "data" && !anatomy.extended_l2 ? Duty::Every : Duty::Disk,
               fields);
      if (!anatomy.extended_l2) continue;
      std::vector<std::uint64_t> bitmaps = all;
      for (std::uint64_t& at : bitmaps) at += 8;
      add_some("subclusters: " + kind, bitmaps, 8, Duty::Disk, fields);
    }
  }

  static void add_refcounts(const Patient& image, const Anatomy& anatomy, std::vector<Field>& fields) {
    fields.push_back({"refcount table entry", anatomy.refcount_table, 8, Duty::Every});
    fields.push_back({"refcount table entry, unused", anatomy.refcount_table + 8, 8, Duty::Every});
    std::vector<std::uint64_t> places;
    const std::uint64_t clusters = image.size() / anatomy.cluster_size;
    for (std::uint64_t i = 0; i < clusters; ++i) {
      fields.push_back({"refcount", anatomy.refcount_at(i * anatomy.cluster_size), 2, Duty::Every});
    }
    fields.push_back(
        {"refcount past the end", anatomy.refcount_at(clusters * anatomy.cluster_size), 2, Duty::Every});
  }

  Disk read() const {
    const auto chain = Chain::open(top(), ImageFormat::Qcow2, {});
    if (chain->size() > kMaxRead) return {chain->top().true_length(), {}};
    return {chain->top().true_length(), content_of(*chain)};
  }

  // The check runs where it can matter.
  Fate fate_of_chain(Duty duty) const {
    const Survey found = survey(top(), ImageFormat::Qcow2, {});
    if (!found.problems.empty()) return Fate::Refused;
    const Fate fate = fate_of_disk();
    if (fate <= Fate::Harmless && duty == Duty::Disk) return fate;
    return check_chain(found, Payloads::All).outcome(true) != Outcome::Done ? Fate::Reported : fate;
  }

  Fate fate_of_disk() const {
    try {
      const Disk now = read();
      if (now.bytes != before_.bytes) return Fate::Silent;
      return now.length == before_.length ? Fate::Harmless : Fate::Longer;
    } catch (const Error&) {
      return Fate::Refused;
    }
  }

  void judge(std::size_t layer, const Field& field, std::uint64_t bit, Fate fate) {
    ++seen_[field.name][static_cast<std::size_t>(fate)];
    const bool wrong = fate > Fate::Harmless || (fate == Fate::Harmless && field.duty == Duty::Every);
    if (!wrong || excused_.excuses(field.name, bit, fate)) return;
    ADD_FAILURE() << "layer " << layer << ", " << field.name << " at " << field.at << ", bit " << bit << ": "
                  << kFates[static_cast<std::size_t>(fate)];
  }

  Folder folder_;
  Disk before_;
  std::map<std::string, std::array<int, kFates.size()>> seen_;

 protected:
  OnlyAManifestCanTell excused_;
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
  excused_.expect_met({"virtual size", "L2 entry", "extension"});
}

TEST_F(MutationTest, ExtendedEntries) {
  write_chain({layer_with(14), layer_with(14, "none", true), layer_with(14, "zstd", true)});
  for (std::size_t layer = 1; layer < 3; ++layer) mutate(layer, false);
  show();
  excused_.expect_met({"virtual size", "subclusters"});
}

}  // namespace
}  // namespace qchain::tests
