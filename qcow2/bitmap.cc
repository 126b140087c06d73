#include "qcow2/bitmap.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "extent/cancellation.h"
#include "qcow2/entry.h"
#include "qcow2/format.h"

namespace qchain {

namespace {

// Limits of QEMU.
constexpr std::uint32_t kMaxBitmaps = 65535;
constexpr std::uint64_t kMaxDirectoryBytes = std::uint64_t{64} << 20;
constexpr std::uint64_t kMaxBitmapBytes = std::uint64_t{512} << 20;
constexpr unsigned kMinGranularityBits = 9;
constexpr unsigned kMaxGranularityBits = 31;
constexpr std::size_t kMaxNameLength = 1023;
static_assert(kMaxNameLength < TableReader::kMaxText);

constexpr unsigned kDirtyTracking = 1;  // the only type
constexpr std::uint64_t kEntryAlignment = 8;
constexpr std::uint64_t kTableOnes = 1;
constexpr std::uint64_t kTableReserved = 0xFF000000000001FE;

struct BitmapsExtension {
  Be32 count;
  Be32 reserved;
  Be64 directory_bytes;
  Be64 directory_offset;
};
static_assert(sizeof(BitmapsExtension) == 24);

/// The fixed part of a directory entry; extra data and name follow, padded to 8 bytes.
struct DirectoryEntry {
  Be64 table_offset;
  Be32 table_entries;
  Be32 flags;
  std::uint8_t type;
  std::uint8_t granularity_bits;
  Be16 name_length;
  Be32 extra_length;
};
static_assert(sizeof(DirectoryEntry) == 24);

std::string format_violation(const BitmapsExtension& extension, const Geometry& geometry) {
  const std::uint64_t at = extension.directory_offset;
  if (extension.reserved != 0) {
    return fmt::format("reserved bits {:#x} are set", std::uint32_t{extension.reserved});
  }
  if (extension.count == 0 || extension.count > kMaxBitmaps) {
    return fmt::format("{} bitmaps; 1 to {} are allowed", std::uint32_t{extension.count}, kMaxBitmaps);
  }
  if (geometry.offset_in_cluster(at) != 0 || at == 0) {
    return fmt::format("a directory at {:#x}, which is not cluster-aligned", at);
  }
  if (extension.directory_bytes == 0 || extension.directory_bytes > kMaxDirectoryBytes) {
    return fmt::format("a directory of {} bytes; 1 to {} are allowed",
                       std::uint64_t{extension.directory_bytes}, kMaxDirectoryBytes);
  }
  return {};
}

// Counts the disk's bytes whose bits are set.
class DirtyCount {
 public:
  DirtyCount(const Image& image, const Bitmap& bitmap)
      : image_(image),
        bitmap_(bitmap),
        disk_(image.header().virtual_size),
        coverage_(image.geometry().cluster_size() * 8 * bitmap.granularity()),
        bits_(image.geometry().cluster_size()) {}

  // Returns why the bits cannot be read; empty where they can.
  std::string run(std::uint64_t& dirty) {
    TableReader table(image_.file(), bitmap_.table, bitmap_.table_entries * sizeof(std::uint64_t));
    for (std::uint64_t begin = 0; begin < disk_; begin += coverage_) {
      const HostOffset at = table.at();
      const std::span<const std::byte> word = table.take(sizeof(std::uint64_t));
      if (word.size() < sizeof(std::uint64_t)) {
        return fmt::format("its table ends at {:#x} and does not cover the whole disk", at.bytes());
      }
      const BitmapTableEntry entry = decode_bitmap_table_entry(decode_struct<Be64>(word.data()));
      std::string problem = qchain::format_violation(entry, image_.geometry());
      if (problem.empty()) problem = add(entry, begin);
      if (!problem.empty()) return fmt::format("table entry at {:#x}: {}", at.bytes(), problem);
    }
    dirty = dirty_;
    return {};
  }

 private:
  std::string add(const BitmapTableEntry& entry, std::uint64_t begin) {
    const std::uint64_t covered = std::min(coverage_, disk_ - begin);
    if (entry.data == HostOffset(0)) {
      if (entry.ones) dirty_ += covered;
      return {};
    }
    throw_if_cancelled();
    if (image_.file().read_at_most(entry.data, bits_) < bits_.size()) {
      return fmt::format("bits at {:#x} are past the end of the file", entry.data.bytes());
    }
    const std::uint64_t count = divide_up(covered, bitmap_.granularity());
    std::uint64_t set = 0;
    for (std::uint64_t i = 0; i < count / 8; ++i) {
      set += static_cast<unsigned>(std::popcount(std::to_integer<std::uint8_t>(bits_[i])));
    }
    for (std::uint64_t i = count - count % 8; i < count; ++i) set += bit(i);
    dirty_ += set * bitmap_.granularity();
    // The last bit of the disk may cover less than a granule.
    if (bit(count - 1) != 0) dirty_ -= count * bitmap_.granularity() - covered;
    return {};
  }

  unsigned bit(std::uint64_t index) const {
    return std::to_integer<unsigned>(bits_[index / 8]) >> (index % 8) & 1;
  }

  const Image& image_;
  const Bitmap& bitmap_;
  const std::uint64_t disk_;
  const std::uint64_t coverage_;  // bytes of the disk that a cluster of bits stands for
  std::vector<std::byte> bits_;
  std::uint64_t dirty_ = 0;
};

BitmapInfo bitmap_info(Bitmap bitmap, const Image& image) {
  BitmapInfo info{std::move(bitmap), {}, 0};
  info.unusable = format_violation(info.bitmap, image);
  if (!info.unusable.empty()) return info;
  if (!bitmaps_are_current(image.header())) {
    info.unusable = "a program without support for bitmaps has written to the image since";
  } else if (info.bitmap.in_use()) {
    info.unusable = "it was in use and not saved (in_use is set)";
  } else {
    info.unusable = DirtyCount(image, info.bitmap).run(info.dirty_bytes);
  }
  return info;
}

}  // namespace

std::optional<BitmapDirectory> bitmap_directory(const Header& header) {
  const auto found = std::ranges::find(header.other_extensions, kExtensionBitmaps, &Extension::id);
  if (found == header.other_extensions.end()) return std::nullopt;
  BitmapDirectory directory;
  if (found->data.size() != sizeof(BitmapsExtension)) {
    directory.problem = fmt::format("the bitmaps extension has {} bytes instead of {}", found->data.size(),
                                    sizeof(BitmapsExtension));
    return directory;
  }
  const auto extension = decode_struct<BitmapsExtension>(std::as_bytes(std::span(found->data)).data());
  directory.count = extension.count;
  directory.at = HostOffset(extension.directory_offset);
  directory.bytes = extension.directory_bytes;
  const std::string problem = format_violation(extension, header.geometry());
  if (!problem.empty()) directory.problem = "the bitmaps extension has " + problem;
  return directory;
}

bool bitmaps_are_current(const Header& header) {
  return header.version >= 3 && (header.autoclear_features & kAutoclearBitmaps) != 0;
}

std::uint64_t Bitmap::granularity() const {
  return granularity_bits <= kMaxGranularityBits ? std::uint64_t{1} << granularity_bits : 0;
}

std::string format_violation(const Bitmap& bitmap, const Image& image) {
  const Geometry& geometry = image.geometry();
  constexpr std::uint32_t kKnownFlags = Bitmap::kInUse | Bitmap::kAutomatic;
  if (bitmap.type != kDirtyTracking) return fmt::format("unknown type {}", bitmap.type);
  if ((bitmap.flags & ~kKnownFlags) != 0) {
    return fmt::format("unknown flags {:#x}", bitmap.flags & ~kKnownFlags);
  }
  if (bitmap.extra_bytes != 0) return fmt::format("{} bytes of extra data", bitmap.extra_bytes);
  if (bitmap.granularity_bits < kMinGranularityBits || bitmap.granularity_bits > kMaxGranularityBits) {
    return fmt::format("granularity_bits {} is not in the range {} to {}", bitmap.granularity_bits,
                       kMinGranularityBits, kMaxGranularityBits);
  }
  if (bitmap.name.size() > kMaxNameLength) {
    return fmt::format("a name of more than {} bytes", kMaxNameLength);
  }
  if (bitmap.table == HostOffset(0) || geometry.offset_in_cluster(bitmap.table.bytes()) != 0) {
    return fmt::format("a table at {:#x}, which is not cluster-aligned", bitmap.table.bytes());
  }
  const std::uint64_t most = kMaxBitmapBytes / geometry.cluster_size();
  if (bitmap.table_entries == 0 || bitmap.table_entries > most) {
    return fmt::format("a table of {} entries; 1 to {} are allowed", bitmap.table_entries, most);
  }
  // A bitmap that was lost while the disk was resized may have any size.
  const std::uint64_t bits = divide_up(geometry.virtual_size(), bitmap.granularity());
  const std::uint64_t needed = divide_up(bits, geometry.cluster_size() * 8);
  if (!bitmap.in_use() && bitmap.table_entries != needed) {
    return fmt::format("a table of {} entries; {} bits of {} bytes each need {}", bitmap.table_entries, bits,
                       bitmap.granularity(), needed);
  }
  return {};
}

BitmapTableEntry decode_bitmap_table_entry(std::uint64_t raw) {
  return {HostOffset(raw & kEntryOffsetMask), (raw & kTableOnes) != 0, raw & kTableReserved};
}

std::string format_violation(const BitmapTableEntry& entry, const Geometry& geometry) {
  if (entry.reserved != 0) return fmt::format("reserved bits {:#x} are set", entry.reserved);
  if (entry.data != HostOffset(0) && entry.ones) {
    return fmt::format("bit 0 is set although there is an offset ({:#x})", entry.data.bytes());
  }
  if (geometry.offset_in_cluster(entry.data.bytes()) != 0) {
    return fmt::format("offset {:#x} is not a multiple of the cluster size {:#x}", entry.data.bytes(),
                       geometry.cluster_size());
  }
  return {};
}

BitmapReader::BitmapReader(const Image& image)
    : directory_(bitmap_directory(image.header()).value_or(BitmapDirectory{})),
      reader_(image.file(), directory_.at, directory_.problem.empty() ? directory_.bytes : 0),
      problem_(directory_.problem) {}

std::optional<Bitmap> BitmapReader::fail(std::string problem) {
  problem_ = std::move(problem);
  return std::nullopt;
}

std::optional<Bitmap> BitmapReader::next() {
  if (!problem_.empty()) return std::nullopt;
  if (index_ == directory_.count) {
    if (reader_.at_end()) return std::nullopt;
    return fail(fmt::format("the directory at {:#x} has bytes left after its {} bitmaps",
                            directory_.at.bytes(), directory_.count));
  }
  Bitmap bitmap;
  bitmap.at = reader_.at();
  const auto ends_early = [&] {
    return fail(fmt::format("the directory ends inside bitmap {} of {}, which is at offset {:#x}", index_ + 1,
                            directory_.count, bitmap.at.bytes()));
  };
  const std::span<const std::byte> fixed = reader_.take(sizeof(DirectoryEntry));
  if (fixed.size() < sizeof(DirectoryEntry)) return ends_early();
  const auto entry = decode_struct<DirectoryEntry>(fixed.data());
  bitmap.table = HostOffset(entry.table_offset);
  bitmap.table_entries = entry.table_entries;
  bitmap.flags = entry.flags;
  bitmap.type = entry.type;
  bitmap.granularity_bits = entry.granularity_bits;
  bitmap.extra_bytes = entry.extra_length;
  if (!reader_.skip(bitmap.extra_bytes) || !reader_.take_text(entry.name_length, bitmap.name) ||
      !reader_.skip(align_up(reader_.position(), kEntryAlignment) - reader_.position())) {
    return ends_early();
  }
  ++index_;
  return bitmap;
}

BitmapList read_bitmaps(const Image& image, std::size_t max) {
  BitmapList list;
  list.count = bitmap_directory(image.header()).value_or(BitmapDirectory{}).count;
  BitmapReader reader(image);
  while (list.bitmaps.size() < max) {
    std::optional<Bitmap> bitmap = reader.next();
    if (!bitmap) break;
    list.bitmaps.push_back(bitmap_info(std::move(*bitmap), image));
  }
  list.problem = reader.problem();
  return list;
}

}  // namespace qchain
