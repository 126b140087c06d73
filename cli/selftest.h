#pragma once

#include "cli/console.h"
#include "cli/options.h"

namespace qchain {

/// qchain selftest: damages copies of a small chain and checks that each damage is detected.
struct SelftestOptions {
  CommonOptions common;
};

/// The command line for `options`, which has to outlive it.
CommandLine command_line_for(SelftestOptions& options);
Outcome selftest(const SelftestOptions& options, Console& console);

}  // namespace qchain
