// What the commands that write a layer have in common.
#pragma once

#include <string>

namespace qchain {

/// The time that a layer records; SOURCE_DATE_EPOCH makes it reproducible. Throws Error (Usage) where that is
/// no number.
std::string recorded_time();

}  // namespace qchain
