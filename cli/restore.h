#pragma once

#include <string>
#include <vector>

#include "cli/console.h"
#include "cli/options.h"

namespace qchain {

/// qchain restore: writes out the disk that a chain describes, to a raw file, standard output, a block device
/// or an NBD export, or as one full layer.
struct RestoreOptions {
  CommonOptions common;
  NbdOptions nbd;
  std::string image;
  std::string destination;  ///< "-": standard output.
  ImageFormat format = ImageFormat::Raw;
  bool no_verify = false;
  bool salvage = false;
  std::vector<std::string> trust_keys;  ///< Paths.
  bool read_back = false;
  bool zero_rest = false;
  bool preallocate = false;
  bool force = false;
};

/// The command line that sets `options`, which has to outlive it.
CommandLine command_line_for(RestoreOptions& options);
Outcome restore(const RestoreOptions& options, Console& console);

}  // namespace qchain
