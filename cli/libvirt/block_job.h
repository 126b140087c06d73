// Block jobs as QEMU reports them.
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

  /// Whether a backup job still preserves its point in time: QEMU leaves these two states before it removes
  /// the copy-before-write filter. A job is briefly paused whenever QEMU drains the disk.
  bool is_alive() const { return status == "running" || status == "paused"; }
};

/// Parses QEMU's reply to query-jobs. Throws Error (Io) if it is an error or malformed.
std::vector<BlockJob> parse_jobs(const std::string& answer);

/// The backup job of the guest's disk `target`. libvirt names it backup-TARGET-NODE. Throws Error (Io) if
/// there are several.
std::optional<BlockJob> backup_job_of(const std::vector<BlockJob>& jobs, const std::string& target);

}  // namespace qchain
