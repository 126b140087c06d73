#pragma once

#include <string>

#include "cli/console.h"
#include "cli/options.h"

namespace qchain {

/// qchain chaininfo: shows what a chain is made of, as far as it can be read.
struct ChaininfoOptions {
  CommonOptions common;
  std::string image;
  bool map = false;
};

/// The command line that sets `options`, which has to outlive it.
CommandLine command_line_for(ChaininfoOptions& options);
Outcome chaininfo(const ChaininfoOptions& options, Console& console);

}  // namespace qchain
