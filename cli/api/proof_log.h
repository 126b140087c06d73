// IMAGE.proofs: a log of when and how far a layer was verified, one JSON object per line.
#pragma once

#include <optional>
#include <string>

#include "cli/api/inspect.h"

namespace qchain {

/// Throws Error (Io).
void append_proof(const std::string& image, const LoggedProof& proof);

/// The last line of the log; nullopt: missing or unreadable.
std::optional<LoggedProof> last_proof(const std::string& image);

}  // namespace qchain
