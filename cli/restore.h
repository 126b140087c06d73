#pragma once

#include "cli/api/qchain.h"
#include "cli/console.h"
#include "cli/options.h"

namespace qchain {

/// qchain restore: writes the disk that a chain describes to a raw file, standard output, a block device or
/// an NBD export, or to a full image.
struct RestoreOptions {
  CommonOptions common;
  RestoreRequest request;  ///< destination "-": standard output.
};

/// The command line for `options`, which has to outlive it.
CommandLine command_line_for(RestoreOptions& options);
Outcome restore(const RestoreOptions& options, Console& console);

}  // namespace qchain
