#pragma once

#include <memory>
#include <string>

#include "cli/console.h"
#include "cli/options.h"
#include "qcow2/chain.h"

namespace qchain {

/// Whether layers have to match their backing files.
enum class Links {
  Warn,     ///< What is done does not depend on it.
  Require,  ///< require_resolved_links()
};

/// Opens a chain as the options allow. Warns of layers that QEMU has marked as corrupt, and of those that do
/// not match their backing files. `format_option`: how the user says that the file is a raw image; empty:
/// there is no way. Throws Error.
std::unique_ptr<Chain> open_chain(const std::string& path, ImageFormat format, const CommonOptions& options,
                                  Console& console, Links links = Links::Warn,
                                  const std::string& format_option = {});

/// Warns of what open_chain() warns of.
void warn_about(const Chain& chain, Console& console);

}  // namespace qchain
