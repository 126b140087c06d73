#include "verify/inventory.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "qcow2/bitmap.h"
#include "qcow2/format.h"
#include "qcow2/snapshot.h"

namespace qchain {

namespace {

constexpr std::uint64_t kWord = sizeof(std::uint64_t);
constexpr std::uint32_t kMaxExtraBytes = 1024;  // of a snapshot; QEMU's limit
constexpr std::uint32_t kMinExtraBytesV3 = 16;

struct LuksPointer {
  Be64 offset;
  Be64 length;
};

class Inventory {
 public:
  Inventory(const Image& image, FindingList& findings) : image_(image), findings_(findings) {}

  std::vector<Region> take() {
    const Header& header = image_.header();
    add({Structure::Header, HostOffset(0), image_.geometry().cluster_size(), HostOffset(0)}, {});
    // The header is decoded: its tables are aligned, and the L1 table is inside the file.
    add({Structure::L1Table, header.l1_table, header.l1_entries * kWord,
         HostOffset(offsetof(HeaderV2, l1_offset)), 1, image_.geometry().virtual_size()},
        "L1 table");
    add_refcount_table();
    if (header.has_incompatible(kIncompatibleCorrupt)) {
      find(Flaw::MarkedCorrupt, Severity::Harmless, HostOffset(offsetof(HeaderV3, incompatible_features)),
           "the image is marked corrupt: QEMU found damage and refuses to write to it");
    }
    if (header.snapshot_count != 0) add_snapshots();
    if (header.crypt_method == kCryptLuks) add_luks_header();
    add_bitmaps();
    return merged();
  }

 private:
  void find(Flaw flaw, Severity severity, HostOffset at, std::string what,
            std::optional<std::uint64_t> value = std::nullopt) {
    findings_.add({flaw, severity, at, std::move(what), value, {}, {}});
  }

  // Adds a region if it starts inside the file; else reports it. Returns whether it was added.
  bool add(const Region& region, const std::string& what) {
    if (region.length == 0) return false;
    const std::uint64_t file = image_.file_size();
    const std::uint64_t at = region.at.bytes();
    // A lost snapshot or bitmap does not affect the active disk.
    const bool needed = region.structure == Structure::L1Table ||
                        region.structure == Structure::SnapshotL1Table ||
                        region.structure == Structure::RefcountTable;
    const bool bitmap =
        region.structure == Structure::BitmapDirectory || region.structure == Structure::BitmapTable;
    const auto bad = [&](Flaw flaw, const char* why) {
      find(bitmap ? Flaw::BadBitmap : flaw, needed ? Severity::DataLoss : Severity::Harmless, region.pointer,
           fmt::format("{} {}", what, why), at);
    };
    if (image_.geometry().offset_in_cluster(at) != 0) {
      bad(Flaw::Misaligned, "is not cluster-aligned");
      return false;
    }
    if (at >= file) {
      // A refcount table past the end suggests a truncated file: some writers put it at the end.
      bad(region.structure == Structure::RefcountTable ? Flaw::Truncated : Flaw::PastEnd,
          "is past the end of the file");
      return false;
    }
    if (region.length > file - at && region.structure != Structure::Header) {
      bad(Flaw::Truncated, "is truncated by the end of the file");
    }
    regions_.push_back(region);
    return true;
  }

  void add_refcount_table() {
    const Header& header = image_.header();
    const HostOffset pointer(offsetof(HeaderV2, refcount_table_offset));
    if (header.refcount_table_clusters == 0) {
      find(Flaw::BadRefcountBlock, Severity::DataLoss, pointer, "there is no refcount table");
      return;
    }
    add({Structure::RefcountTable, header.refcount_table,
         header.refcount_table_clusters * image_.geometry().cluster_size(), pointer},
        "refcount table");
  }

  void add_snapshots() {
    const Header& header = image_.header();
    const HostOffset pointer(offsetof(HeaderV2, snapshots_offset));
    SnapshotReader reader(image_);
    while (const std::optional<Snapshot> snapshot = reader.next()) add_snapshot(*snapshot);
    if (!reader.problem().empty()) {
      find(Flaw::BadSnapshot, Severity::DataLoss, pointer, "snapshots: " + reader.problem(),
           header.snapshots.bytes());
    }
    add({Structure::SnapshotTable, header.snapshots, reader.table_bytes(), pointer}, "snapshot table");
  }

  void add_snapshot(const Snapshot& snapshot) {
    const Geometry& geometry = image_.geometry();
    const std::string what = fmt::format("snapshot \"{}\" (\"{}\")", snapshot.id, snapshot.name);
    const auto bad = [&](const std::string& why) {
      find(Flaw::BadSnapshot, Severity::Harmless, snapshot.at, fmt::format("{}: {}", what, why));
    };
    if (snapshot.extra_bytes > kMaxExtraBytes) {
      bad(fmt::format("{} bytes of extra data; at most {}", snapshot.extra_bytes, kMaxExtraBytes));
    }
    if (image_.header().version >= 3 && snapshot.extra_bytes < kMinExtraBytesV3) {
      bad(fmt::format("{} bytes of extra data; version 3 requires {}", snapshot.extra_bytes,
                      kMinExtraBytesV3));
    }
    if (snapshot.l1_entries > kMaxL1Bytes / kWord) {
      find(Flaw::BadSnapshot, Severity::DataLoss, snapshot.at,
           fmt::format("{}: an L1 table of {} entries is larger than {} bytes", what, snapshot.l1_entries,
                       kMaxL1Bytes));
      return;
    }
    if (snapshot.disk_bytes > snapshot.l1_entries * geometry.l2_coverage()) {
      find(Flaw::BadSnapshot, Severity::DataLoss, snapshot.at,
           fmt::format("{}: an L1 table of {} entries does not cover its disk of {} bytes", what,
                       snapshot.l1_entries, snapshot.disk_bytes));
    }
    // The VM state is stored after the end of the disk.
    const std::uint64_t visible =
        snapshot.vm_state_bytes != 0 ? snapshot.l1_entries * geometry.l2_coverage() : snapshot.disk_bytes;
    add({Structure::SnapshotL1Table, snapshot.l1_table, snapshot.l1_entries * kWord, snapshot.at, 1, visible},
        what + ": its L1 table");
  }

  void add_luks_header() {
    const std::vector<Extension>& extensions = image_.header().other_extensions;
    const auto found = std::ranges::find(extensions, kExtensionLuks, &Extension::id);
    if (found == extensions.end() || found->data.size() != sizeof(LuksPointer)) {
      find(Flaw::BadExtension, Severity::DataLoss, HostOffset(0),
           "an image with LUKS encryption has no pointer to the LUKS header");
      return;
    }
    const auto pointer = decode_struct<LuksPointer>(std::as_bytes(std::span(found->data)).data());
    const std::uint64_t at = pointer.offset;
    if (at > image_.file_size() || pointer.length > image_.file_size()) {
      find(Flaw::BadExtension, Severity::DataLoss, HostOffset(0),
           fmt::format("a LUKS header of {} bytes at {:#x} is past the end of the file",
                       std::uint64_t{pointer.length}, at));
      return;
    }
    add({Structure::LuksHeader, HostOffset(at), pointer.length, HostOffset(0)}, "LUKS header");
  }

  void add_bitmaps() {
    const std::optional<BitmapDirectory> directory = bitmap_directory(image_.header());
    if (!directory || !bitmaps_are_current(image_.header())) return;
    if (directory->problem.empty()) {
      add({Structure::BitmapDirectory, directory->at, directory->bytes, HostOffset(0)}, "bitmap directory");
    }
    BitmapReader reader(image_);
    while (const std::optional<Bitmap> bitmap = reader.next()) {
      const std::string what = fmt::format("bitmap \"{}\"", bitmap->name);
      const std::string violation = format_violation(*bitmap, image_);
      if (!violation.empty()) {
        find(Flaw::BadBitmap, Severity::Harmless, bitmap->at, fmt::format("{}: {}", what, violation));
        continue;
      }
      add({Structure::BitmapTable, bitmap->table, bitmap->table_entries * kWord, bitmap->at},
          what + ": its table");
    }
    if (!reader.problem().empty()) {
      find(directory->problem.empty() ? Flaw::BadBitmap : Flaw::BadExtension, Severity::Harmless,
           directory->at, reader.problem());
    }
  }

  // Equal regions are walked once: many snapshots that share an L1 table take no longer than one.
  std::vector<Region> merged() {
    const auto key = [](const Region& r) { return std::tuple(r.structure, r.at, r.length, r.visible); };
    std::ranges::stable_sort(regions_, {}, key);
    std::vector<Region> merged;
    for (const Region& region : regions_) {
      if (!merged.empty() && key(merged.back()) == key(region)) {
        merged.back().references += region.references;
      } else {
        merged.push_back(region);
      }
    }
    return merged;
  }

  const Image& image_;
  FindingList& findings_;
  std::vector<Region> regions_;
};

}  // namespace

std::vector<Region> take_inventory(const Image& image, FindingList& findings) {
  return Inventory(image, findings).take();
}

}  // namespace qchain
