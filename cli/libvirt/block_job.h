// Block jobs as QEMU tells of them.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace qchain {

/// One entry of QMP's query-jobs.
struct BlockJob {
  std::string id;
  std::string type;    ///< "backup", "commit", "mirror", ...
  std::string status;  ///< "running", "paused", "aborting", "concluded", ...

  /// Whether a backup job still keeps its point in time: QEMU leaves these two states before it removes the
  /// filter that saves old data from being overwritten. A job is paused for moments whenever QEMU drains the
  /// disk.
  bool is_alive() const { return status == "running" || status == "paused"; }
};

/// Reads QEMU's answer to query-jobs. Throws Error (Io) where it is an error or something else.
std::vector<BlockJob> parse_jobs(const std::string& answer);

/// The backup job of the guest's disk `target`. libvirt names it backup-TARGET-NODE. Throws Error (Io) where
/// several may be meant.
std::optional<BlockJob> backup_job_of(const std::vector<BlockJob>& jobs, const std::string& target);

}  // namespace qchain
