#pragma once

#include <vector>

#include "cli/api/point.h"
#include "cli/api/verdict.h"
#include "verify/restore_points.h"

namespace qchain {

/// The point in time of the top of a chain.
PointInTime top_point(RestorePoints& points);

/// Throws Error (Usage) if a demand is not one of those that point.h lists.
void require_valid(const PointDemand& demand);

/// Why `point` is not what was asked for: BadManifest, all of them. Throws Error (Io, Usage) if the file of
/// the last points cannot be read.
std::vector<Verdict> check_point(const PointInTime& point, const PointDemand& demand);

/// Records that `point` was seen, in the file that the demand names, if it names one. Throws Error.
void record_seen(const PointInTime& point, const PointDemand& demand);

}  // namespace qchain
