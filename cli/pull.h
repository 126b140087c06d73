#pragma once

#include <optional>
#include <string>

#include "cli/api/qchain.h"
#include "cli/console.h"
#include "cli/options.h"
#include "qcow2/chain.h"

namespace qchain {

/// qchain pull: copies a live export into a new layer of a chain, or into a raw file.
struct PullOptions {
  CommonOptions common;
  OwnerOptions owner;
  PullRequest request;  ///< For raw output, only the fields that apply; output "-": standard output.
  ImageFormat format = ImageFormat::Qcow2;
  std::optional<ByteRange> range;  ///< Raw only.
};

/// The command line for `options`, which has to outlive it.
CommandLine command_line_for(PullOptions& options);
/// Throws Error.
Outcome pull(const PullOptions& options, Console& console);

}  // namespace qchain
