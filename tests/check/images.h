// Images for the metadata check: made and checked by QEMU, damaged byte by byte.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/random.h"
#include "tests/support.h"
#include "verify/check.h"

namespace qchain::tests {

/// How an image is laid out.
struct Shape {
  unsigned cluster_bits = 16;
  unsigned refcount_order = 4;
  unsigned version = 3;
  bool extended_l2 = false;
  bool zstd = false;
  bool lazy = false;
  std::uint64_t size = 0;  // of the disk, bytes

  std::uint64_t cluster_size() const { return std::uint64_t{1} << cluster_bits; }
  /// As qemu-img create -o takes it.
  std::string options() const;
};
Shape random_shape(Random& random);

/// Creates an image and lets QEMU do a random sequence of writes, zero writes, discards, compressed writes,
/// snapshots, bitmaps and resizes. What QEMU refuses is left out.
void make_random_image(Random& random, const Shape& shape, const std::string& path);

/// The result of qemu-img check. CannotOpen also if it hangs, as with an image that is its own backing file.
enum class QemuVerdict { Clean, Leaks, Corrupt, CannotOpen };
QemuVerdict check_by_qemu(const std::string& path);
const char* to_string(QemuVerdict verdict);

/// Our result for a chain.
CheckReport check_by_us(const std::string& path, Payloads payloads = Payloads::Doubtful);
/// Our result as a QemuVerdict: a harmless fault is Corrupt.
QemuVerdict verdict_of(const CheckReport& report);
/// Whether QEMU found damage that we did not: a corruption has to be one for us too, a leak at least a leak.
/// What QEMU reports as corrupt in an image with the dirty bit may be refcounts that we report as stale.
bool is_missed(QemuVerdict by_qemu, const CheckReport& by_us);
/// QEMU 7.2 can damage images: after a compressed cluster is discarded and its host cluster is reused for
/// data, the next compressed write of the same process goes there too. The refcount matches, so qemu-img
/// check does not find it. If QEMU notices, it marks the image corrupt, which check does not report either.
bool is_damage_that_qemu_misses(const CheckReport& report);
/// All findings and problems, for messages.
std::string words_of(const CheckReport& report);
std::uint64_t count(const CheckReport& report, Flaw flaw);

/// An image file that can be damaged and restored.
class DamagedImage {
 public:
  explicit DamagedImage(std::string path) : path_(std::move(path)), sound_(read_file(path_)) {}

  const std::string& path() const { return path_; }
  std::uint64_t size() const { return sound_.size(); }
  /// A value of the undamaged image.
  std::uint64_t word(std::uint64_t offset) const { return number(offset, 8); }
  std::uint64_t number(std::uint64_t offset, unsigned bytes) const;

  void put(std::uint64_t offset, std::uint64_t value, unsigned bytes = 8);
  void put(std::uint64_t offset, const Bytes& bytes);
  void flip(std::uint64_t offset, unsigned bit);
  void truncate(std::uint64_t size);
  /// Undoes all damage.
  void restore();

 private:
  std::string path_;
  Bytes sound_;
  bool cut_ = false;
  std::vector<std::pair<std::uint64_t, std::size_t>> damage_;  // offset, length
};

/// The location of an image's metadata, as far as tests need it; found independently of the code under test.
struct MetadataMap {
  explicit MetadataMap(const DamagedImage& image);

  struct Entry {
    std::uint64_t at = 0;
    std::uint64_t raw = 0;
    std::uint64_t guest = 0;
  };
  std::uint64_t cluster_size = 0;
  std::uint64_t disk = 0;
  unsigned refcount_order = 4;
  std::uint64_t l1_table = 0;
  std::uint64_t refcount_table = 0;
  std::uint64_t snapshot_table = 0;
  std::uint64_t bitmap_directory = 0;  // 0: none
  bool extended_l2 = false;
  std::vector<Entry> l1;               // active, not 0
  std::vector<Entry> l2;               // of active tables; 0 too
  std::vector<Entry> refcount_blocks;  // entries of the refcount table, not 0

  bool is_plain(const Entry& entry) const;
  bool is_compressed(const Entry& entry) const { return (entry.raw >> 62 & 1) != 0; }
  std::uint64_t host(const Entry& entry) const { return entry.raw & 0x00FFFFFFFFFFFE00; }
  /// The first L2 entry for which `wanted` returns true.
  template <class Wanted>
  const Entry* first(Wanted&& wanted) const {
    for (const Entry& entry : l2) {
      if (wanted(entry)) return &entry;
    }
    return nullptr;
  }
  /// The offset of the refcount of a cluster. For orders 3 to 6.
  std::uint64_t refcount_at(std::uint64_t host) const;
};

}  // namespace qchain::tests
