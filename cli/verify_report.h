// What came of `qchain verify`, as text and as the JSON document of verify_report.schema.json.
#pragma once

#include "cli/api/verify.h"
#include "cli/verify.h"

namespace qchain {

/// Prints it, and appends it to the image's log where --record asks for that. `seconds`: how long it took.
/// Returns the outcome.
Outcome report_verify(const VerifyOptions& options, const VerifyResult& result, double seconds,
                      Console& console);

}  // namespace qchain
