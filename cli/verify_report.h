// The report of `qchain verify`, as text and as JSON (verify_report.schema.json).
#pragma once

#include "cli/api/verify.h"
#include "cli/verify.h"

namespace qchain {

/// Prints the report, and with --record appends it to the log of the image. `seconds`: the duration. Returns
/// the outcome.
Outcome report_verify(const VerifyOptions& options, const VerifyResult& result, double seconds,
                      Console& console);

}  // namespace qchain
