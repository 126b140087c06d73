#pragma once

#include <string>

#include "cli/console.h"
#include "cli/options.h"

namespace qchain {

/// qchain chaininfo: shows the layers of a chain, as far as they can be read.
struct ChaininfoOptions {
  CommonOptions common;
  std::string image;
  bool map = false;
};

/// The command line for `options`, which has to outlive it.
CommandLine command_line_for(ChaininfoOptions& options);
Outcome chaininfo(const ChaininfoOptions& options, Console& console);

}  // namespace qchain
