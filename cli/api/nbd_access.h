#pragma once

#include <string>

#include "cli/api/active_run.h"
#include "cli/api/qchain.h"
#include "extent/nbd_export.h"

namespace qchain {

/// What workers do. Those that write too wait for their writes now and then, so that twice as many are
/// faster.
enum class Work { Read, ReadAndWrite };

NbdTarget nbd_target(const NbdOptions& options, const std::string& uri);
/// `wanted` by the caller; 0: by the cores.
unsigned worker_count(unsigned wanted, Work work);
/// The same, where connections were asked for: as many.
unsigned worker_count(const NbdOptions& options, unsigned wanted, Work work);
/// The same for those that read `live`: a connection each.
unsigned worker_count(const NbdOptions& options, unsigned wanted, NbdExport& live, Work work);

/// Asks export and owner, after the last read, whether all of it was one point in time; nullptr: no owner.
/// Throws Error (Inconclusive; Io).
void require_point_in_time(NbdExport& live, JobOwner* owner);
/// Warns where requests failed and were repeated, or connections were lost: that is the first sign of a disk,
/// or a network, that fails.
void warn_about_recovery(const NbdExport& live, const ActiveRun& run);
/// For identities and results; nullptr: nobody says so.
std::string point_in_time(const JobOwner* owner);
/// "read-only export" or "writable export".
std::string source_of(const NbdExport& live);

}  // namespace qchain
