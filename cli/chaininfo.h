#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/console.h"
#include "cli/options.h"

namespace qchain {

/// qchain chaininfo: shows what a chain is made of, as far as it can be read.
struct ChaininfoOptions {
  CommonOptions common;
  std::string image;
  bool map = false;
};

std::optional<ChaininfoOptions> parse_chaininfo(const std::vector<std::string>& words);
Outcome chaininfo(const ChaininfoOptions& options, Console& console);

}  // namespace qchain
