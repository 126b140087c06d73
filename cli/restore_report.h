#pragma once

#include "cli/api/qchain.h"
#include "cli/console.h"

namespace qchain {

/// Prints the result of a restore.
void report_restore(const RestoreRequest& request, const RestoreResult& result, Console& console);

}  // namespace qchain
