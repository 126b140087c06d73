#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/console.h"
#include "cli/options.h"

namespace qchain {

/// qchain check: metadata consistency of every layer of a chain.
struct CheckOptions {
  CommonOptions common;
  std::string image;
  bool strict = false;
  bool decode = false;
};

std::optional<CheckOptions> parse_check(const std::vector<std::string>& words);
Outcome check(const CheckOptions& options, Console& console);

}  // namespace qchain
