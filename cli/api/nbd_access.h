#pragma once

#include <string>

#include "cli/api/active_run.h"
#include "cli/api/qchain.h"
#include "extent/nbd_export.h"

namespace qchain {

/// What workers do. Workers that also write sometimes wait for their writes, so twice as many are used.
enum class Work { Read, ReadAndWrite };

NbdTarget nbd_target(const NbdOptions& options, const std::string& uri);
/// `wanted`: the number that the caller asked for; 0: depends on the number of cores.
unsigned worker_count(unsigned wanted, Work work);
/// The same, but options.connections if that is given.
unsigned worker_count(const NbdOptions& options, unsigned wanted, Work work);
/// The same for workers that read `live`, with a connection each.
unsigned worker_count(const NbdOptions& options, unsigned wanted, NbdExport& live, Work work);

/// Confirms with the export and the owner (nullptr: none), after the last read, that all data is from one
/// point in time. Throws Error (Inconclusive, Io).
void require_point_in_time(NbdExport& live, JobOwner* owner);
/// Warns if requests were retried or connections were lost, which may be the first sign of a failing disk or
/// network.
void warn_about_recovery(const NbdExport& live, const ActiveRun& run);
/// For identities and results; nullptr: no owner.
std::string point_in_time(const JobOwner* owner);
/// "read-only export" or "writable export".
std::string source_of(const NbdExport& live);

}  // namespace qchain
