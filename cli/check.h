#pragma once

#include <string>

#include "cli/console.h"
#include "cli/options.h"

namespace qchain {

/// qchain check: checks the metadata of every layer of a chain.
struct CheckOptions {
  CommonOptions common;
  std::string image;
  bool strict = false;
  bool decode = false;
};

/// The command line for `options`, which has to outlive it.
CommandLine command_line_for(CheckOptions& options);
Outcome check(const CheckOptions& options, Console& console);

}  // namespace qchain
