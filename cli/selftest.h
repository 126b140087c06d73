#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/console.h"
#include "cli/options.h"

namespace qchain {

/// qchain selftest: damages copies of a small chain, and expects the drill to tell.
struct SelftestOptions {
  CommonOptions common;
};

std::optional<SelftestOptions> parse_selftest(const std::vector<std::string>& words);
Outcome selftest(const SelftestOptions& options, Console& console);

}  // namespace qchain
