// IMAGE.proofs: when and how far a layer was proven, one JSON object a line. A log, and no part of the proof.
#pragma once

#include <optional>
#include <string>

#include "cli/api/inspect.h"

namespace qchain {

/// Throws Error (Io).
void append_proof(const std::string& image, const LoggedProof& proof);

/// The last line of the log; nullopt: there is none that can be read.
std::optional<LoggedProof> last_proof(const std::string& image);

}  // namespace qchain
