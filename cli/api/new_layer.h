// Shared by the commands that write a layer.
#pragma once

#include <string>

namespace qchain {

/// The time to record in a layer: SOURCE_DATE_EPOCH if set, for reproducible output. Throws Error (Usage) if
/// that is not a number.
std::string recorded_time();

}  // namespace qchain
