#pragma once

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

/// The command line for `options`, which has to outlive it.
CommandLine command_line_for(DigestCommandOptions& options);
Outcome digest(const DigestCommandOptions& options, Console& console);

}  // namespace qchain
