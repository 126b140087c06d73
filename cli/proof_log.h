// IMAGE.proofs: when and how far a layer was proven, one JSON object a line. A log, and no part of the proof.
#pragma once

#include <optional>
#include <string>

#include "cli/console.h"

namespace qchain {

/// Appends the verdict of a report. Throws Error (Io).
void append_proof(const std::string& image, Outcome outcome, const Json& report);

/// The last line of the log; nullopt: there is none that can be read.
std::optional<Json> last_proof(const std::string& image);

}  // namespace qchain
