#pragma once

#include <string>

#include "extent/error.h"
#include "verify/finding.h"

namespace qchain {

/// `message`, followed by the command line option that helps, if there is one.
std::string with_hint(const std::string& message, Remedy remedy);
/// The message of `error`, likewise.
inline std::string with_hint(const Error& error) { return with_hint(error.what(), error.remedy()); }

/// How to repair an image with this flaw; names the commands.
const char* remedy_for(Flaw flaw) noexcept;

}  // namespace qchain
