// How points in time are shown.
#pragma once

#include <string>

#include "cli/api/point.h"
#include "cli/console.h"

namespace qchain {

/// "point in time 2026-11-28T18:00:00Z, checkpoint daily, layer UUID, disk vda".
std::string point_text(const PointInTime& point);
Json json_of(const PointInTime& point);
/// "sealed 2026-12-01T18:00:00Z, 5 days after the layer was written". `written`: empty: unknown.
std::string sealed_text(const std::string& written, const std::string& sealed);

}  // namespace qchain
