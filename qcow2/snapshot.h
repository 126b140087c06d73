// Internal snapshots: what the snapshot table of an image lists.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "extent/range.h"
#include "qcow2/image.h"
#include "qcow2/table_reader.h"

namespace qchain {

struct Snapshot {
  HostOffset at;  ///< Of its entry in the table.
  std::string id;
  std::string name;  ///< Any bytes, as the id; escape them on output. The first 1024 of each.
  HostOffset l1_table;
  std::uint64_t l1_entries = 0;
  std::uint32_t seconds = 0;  ///< When it was taken, since 1970.
  std::uint32_t nanoseconds = 0;
  std::uint64_t vm_clock = 0;        ///< How long the guest had run, in nanoseconds.
  std::uint64_t vm_state_bytes = 0;  ///< Of the guest's memory and devices; 0: disk only.
  std::uint64_t disk_bytes = 0;      ///< Size of the disk then; if not recorded, its size now.
  std::uint32_t extra_bytes = 0;     ///< Length of the entry's extra data, as claimed.

  friend bool operator==(const Snapshot&, const Snapshot&) = default;
};

/// Reads the snapshot table of an image entry by entry. Needs memory for one entry only, whatever the image
/// claims.
class SnapshotReader {
 public:
  explicit SnapshotReader(const Image& image);

  /// The next snapshot; nullopt after the last one, or if the table is corrupt: see problem(). Throws Error
  /// (Io).
  std::optional<Snapshot> next();

  /// Why the table ended early, with offset and value; empty if it did not.
  const std::string& problem() const noexcept { return problem_; }
  /// Bytes of the table that were read.
  std::uint64_t table_bytes() const noexcept { return reader_.position(); }

 private:
  std::optional<Snapshot> fail(std::string problem);

  const Image& image_;
  TableReader reader_;
  std::uint32_t index_ = 0;
  std::string problem_;
};

/// The snapshots of an image, at most `max` of them; header().snapshot_count is their number.
struct SnapshotList {
  std::vector<Snapshot> snapshots;
  std::string problem;  ///< Why the table could not be read to its end; empty if it could.
};
/// Throws Error (Io).
SnapshotList read_snapshots(const Image& image, std::size_t max);

}  // namespace qchain
