#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/console.h"
#include "cli/options.h"

namespace qchain {

/// qchain verify: proves a chain against the live export; without one, its metadata only.
struct VerifyOptions {
  CommonOptions common;
  NbdOptions nbd;
  std::string image;
  std::string against;  ///< URI; empty: nothing live to compare with.
};

std::optional<VerifyOptions> parse_verify(const std::vector<std::string>& words);
Outcome verify(const VerifyOptions& options, Console& console);

}  // namespace qchain
