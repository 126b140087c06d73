#include "qcow2/snapshot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "qcow2/format.h"

namespace qchain {

namespace {

constexpr std::uint64_t kMaxTableBytes = std::uint64_t{64} << 20;  // as QEMU has it
constexpr std::uint64_t kEntryAlignment = 8;

/// The fixed part of an entry; extra data, id and name follow, padded to 8 bytes.
struct SnapshotEntry {
  Be64 l1_offset;
  Be32 l1_entries;
  Be16 id_length;
  Be16 name_length;
  Be32 seconds;
  Be32 nanoseconds;
  Be64 vm_clock;
  Be32 vm_state_bytes;  // if the extra data has no wider field
  Be32 extra_length;
};
static_assert(sizeof(SnapshotEntry) == 40);

/// The extra data, as much of it as extra_length says.
struct SnapshotExtra {
  Be64 vm_state_bytes;
  Be64 disk_bytes;
};
static_assert(sizeof(SnapshotExtra) == 16);

// How much of the table there can be, whatever the entries claim.
std::uint64_t table_bound(const Image& image) {
  const std::uint64_t begin = image.header().snapshots.bytes();
  if (image.header().snapshot_count == 0 || begin >= image.file_size()) return 0;
  return std::min(kMaxTableBytes, image.file_size() - begin);
}

}  // namespace

SnapshotReader::SnapshotReader(const Image& image)
    : image_(image), reader_(image.file(), image.header().snapshots, table_bound(image)) {}

std::optional<Snapshot> SnapshotReader::fail(std::string problem) {
  problem_ = std::move(problem);
  return std::nullopt;
}

std::optional<Snapshot> SnapshotReader::next() {
  if (index_ == image_.header().snapshot_count || !problem_.empty()) return std::nullopt;
  // Skips the padding before an entry: after the last entry, there may be none.
  const std::uint64_t begin = align_up(reader_.position(), kEntryAlignment);
  Snapshot snapshot;
  snapshot.at = image_.header().snapshots + begin;
  const auto ends_early = [&] {
    return fail(fmt::format("the table ends inside snapshot {} of {}, which is at offset {:#x}", index_ + 1,
                            image_.header().snapshot_count, snapshot.at.bytes()));
  };
  if (!reader_.skip(begin - reader_.position())) return ends_early();
  const std::span<const std::byte> fixed = reader_.take(sizeof(SnapshotEntry));
  if (fixed.size() < sizeof(SnapshotEntry)) return ends_early();
  const auto entry = decode_struct<SnapshotEntry>(fixed.data());
  snapshot.l1_table = HostOffset(entry.l1_offset);
  snapshot.l1_entries = entry.l1_entries;
  snapshot.seconds = entry.seconds;
  snapshot.nanoseconds = entry.nanoseconds;
  snapshot.vm_clock = entry.vm_clock;
  snapshot.vm_state_bytes = entry.vm_state_bytes;
  snapshot.extra_bytes = entry.extra_length;
  snapshot.disk_bytes = image_.header().virtual_size;

  const std::size_t known = std::min<std::size_t>(snapshot.extra_bytes, sizeof(SnapshotExtra));
  const std::span<const std::byte> extra_bytes = reader_.take(known);
  if (extra_bytes.size() < known) return ends_early();
  SnapshotExtra extra;
  std::memcpy(&extra, extra_bytes.data(), known);
  if (known >= sizeof(Be64)) snapshot.vm_state_bytes = extra.vm_state_bytes;
  if (known >= sizeof(SnapshotExtra)) snapshot.disk_bytes = extra.disk_bytes;
  if (!reader_.skip(snapshot.extra_bytes - known) || !reader_.take_text(entry.id_length, snapshot.id) ||
      !reader_.take_text(entry.name_length, snapshot.name)) {
    return ends_early();
  }
  ++index_;
  return snapshot;
}

SnapshotList read_snapshots(const Image& image, std::size_t max) {
  SnapshotList list;
  SnapshotReader reader(image);
  while (list.snapshots.size() < max) {
    std::optional<Snapshot> snapshot = reader.next();
    if (!snapshot) break;
    list.snapshots.push_back(std::move(*snapshot));
  }
  list.problem = reader.problem();
  return list;
}

}  // namespace qchain
