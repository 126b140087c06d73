// IMAGE.proofs: a log of when and how far a layer was verified, one JSON object per line.
#pragma once

#include <optional>
#include <string>

#include "cli/console.h"

namespace qchain {

/// Appends the verdict of a report. Throws Error (Io).
void append_proof(const std::string& image, Outcome outcome, const Json& report);

/// The last line of the log; nullopt: missing or unreadable.
std::optional<Json> last_proof(const std::string& image);

}  // namespace qchain
