#pragma once

#include <memory>
#include <string>

#include "cli/api/active_run.h"
#include "qcow2/chain.h"

namespace qchain {

/// Whether layers have to match their backing files.
enum class Links {
  Warn,     ///< What is done does not depend on it.
  Require,  ///< require_resolved_links()
};

/// Opens a chain as the options allow. Warns of layers that QEMU has marked as corrupt, and of those that do
/// not match their backing files. `if_not_qcow2`: what the caller can do where it is no qcow2 image. Throws
/// Error.
std::unique_ptr<Chain> open_chain(const std::string& path, ImageFormat format, const OpenOptions& options,
                                  Links links, const ActiveRun& run, Remedy if_not_qcow2 = Remedy::None);

/// Warns of what open_chain() warns of.
void warn_about(const Chain& chain, const ActiveRun& run);

}  // namespace qchain
