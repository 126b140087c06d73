#pragma once

#include "cli/console.h"
#include "cli/verify.h"

namespace qchain {

/// qchain verify --combine: adds up the reports of the parts of one proof. Throws Error (Usage) where they
/// are not of one chain, or no reports at all.
Outcome combine(const VerifyOptions& options, Console& console);

/// What an earlier report found: the ranges that differed or could not be read. Throws Error (Usage).
std::vector<GuestRange> findings_of(const std::string& report);

}  // namespace qchain
