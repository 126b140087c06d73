#pragma once

#include <string>

#include "cli/console.h"
#include "cli/options.h"
#include "qcow2/chain.h"
#include "verify/digest.h"

namespace qchain {

/// qchain digest: prints the content digest of an image, a raw file or an NBD export.
struct DigestCommandOptions {
  CommonOptions common;
  NbdOptions nbd;
  OwnerOptions owner;  ///< Of the job behind an export.
  std::string source;
  ImageFormat format = ImageFormat::Qcow2;  ///< Of a file.
  Algorithm algorithm = Algorithm::Sha256;
};

/// The command line that sets `options`, which has to outlive it.
CommandLine command_line_for(DigestCommandOptions& options);
Outcome digest(const DigestCommandOptions& options, Console& console);

}  // namespace qchain
