#pragma once

#include "cli/console.h"
#include "cli/verify.h"

namespace qchain {

/// qchain verify --combine: combines the reports of all parts of a chain. Throws Error (Usage) if they are
/// not reports, or not of the same chain.
Outcome combine(const VerifyOptions& options, Console& console);

/// The ranges that differed or could not be read according to an earlier report. Throws Error (Usage).
std::vector<GuestRange> findings_of(const std::string& report);

}  // namespace qchain
