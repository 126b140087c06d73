#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/api/qchain.h"
#include "cli/console.h"
#include "cli/options.h"

namespace qchain {

/// qchain digest: prints the content digest of an image, a raw file or an NBD export.
struct DigestCommandOptions {
  CommonOptions common;
  OwnerOptions owner;
  DigestRequest request;
};

std::optional<DigestCommandOptions> parse_digest(const std::vector<std::string>& words);
Outcome digest(const DigestCommandOptions& options, Console& console);

}  // namespace qchain
