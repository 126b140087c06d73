#pragma once

#include <string>

#include "extent/error.h"

namespace qchain {

/// `message`, with the options of the command line that help; as it is where there are none.
std::string with_hint(const std::string& message, Remedy remedy);
/// The words of `error`, likewise.
inline std::string with_hint(const Error& error) { return with_hint(error.what(), error.remedy()); }

}  // namespace qchain
