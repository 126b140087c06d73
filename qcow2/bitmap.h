// Persistent dirty bitmaps: what the bitmap directory of an image lists.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "extent/range.h"
#include "qcow2/header.h"
#include "qcow2/image.h"
#include "qcow2/table_reader.h"

namespace qchain {

/// The bitmaps extension of a header.
struct BitmapDirectory {
  std::uint32_t count = 0;
  HostOffset at;
  std::uint64_t bytes = 0;
  std::string problem;  ///< How it violates the format or QEMU's limits; empty: it does not.
};
/// nullopt: the image has no bitmaps.
std::optional<BitmapDirectory> bitmap_directory(const Header& header);

/// Whether the bitmaps are as recent as the disk. If not, a program that does not support them has written to
/// the image since, and QEMU ignores all of them.
bool bitmaps_are_current(const Header& header);

/// One entry of the directory.
struct Bitmap {
  static constexpr std::uint32_t kInUse = 1;      // was not saved after its last use
  static constexpr std::uint32_t kAutomatic = 2;  // QEMU enables it when it opens the image

  HostOffset at;     ///< Of the entry.
  std::string name;  ///< Any bytes, the first 1024 of them; escape it on output.
  HostOffset table;
  std::uint64_t table_entries = 0;
  std::uint32_t flags = 0;
  unsigned type = 0;
  unsigned granularity_bits = 0;
  std::uint32_t extra_bytes = 0;

  bool in_use() const { return (flags & kInUse) != 0; }
  bool automatic() const { return (flags & kAutomatic) != 0; }
  /// Bytes of the disk that one bit stands for; 0 if the entry is corrupt.
  std::uint64_t granularity() const;

  friend bool operator==(const Bitmap&, const Bitmap&) = default;
};

/// How an entry violates the format or QEMU's limits; empty if it does not.
std::string format_violation(const Bitmap& bitmap, const Image& image);

/// An entry of a bitmap's table. Decoding is total.
struct BitmapTableEntry {
  HostOffset data;  ///< Of a cluster of bits; 0: none, all bits are `ones`.
  bool ones = false;
  std::uint64_t reserved = 0;  ///< Reserved bits that are set; must be 0.
};
BitmapTableEntry decode_bitmap_table_entry(std::uint64_t raw);
std::string format_violation(const BitmapTableEntry& entry, const Geometry& geometry);

/// Reads the bitmap directory of an image entry by entry. Needs memory for one entry only, whatever the image
/// claims.
class BitmapReader {
 public:
  explicit BitmapReader(const Image& image);

  /// The next bitmap; nullopt after the last one, or if the directory is corrupt: see problem(). Throws Error
  /// (Io).
  std::optional<Bitmap> next();

  /// What is wrong with the directory, with offset and value; empty: nothing.
  const std::string& problem() const noexcept { return problem_; }

 private:
  std::optional<Bitmap> fail(std::string problem);

  BitmapDirectory directory_;
  TableReader reader_;
  std::uint32_t index_ = 0;
  std::string problem_;
};

/// A bitmap, and whether it can be used.
struct BitmapInfo {
  Bitmap bitmap;
  std::string unusable;           ///< Why it cannot be used for an incremental backup; empty: it can.
  std::uint64_t dirty_bytes = 0;  ///< Bytes of the disk whose bits are set; of a usable bitmap.
};

/// The bitmaps of an image, at most `max` of them. `problem`: why there are fewer than `count`.
struct BitmapList {
  std::uint32_t count = 0;
  std::vector<BitmapInfo> bitmaps;
  std::string problem;
};
/// Reads the bits too, to count them. Throws Error (Io).
BitmapList read_bitmaps(const Image& image, std::size_t max);

}  // namespace qchain
