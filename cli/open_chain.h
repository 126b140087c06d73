#pragma once

#include <memory>
#include <string>

#include "cli/console.h"
#include "cli/options.h"
#include "qcow2/chain.h"

namespace qchain {

/// Opens a chain as the options allow. Warns of layers that QEMU has marked as corrupt, and of those that do
/// not match their backing files: who depends on that calls require_resolved_links(). `format_option`: how
/// the user says that the file is a raw image; empty: there is no way. Throws Error.
std::unique_ptr<Chain> open_chain(const std::string& path, ImageFormat format, const CommonOptions& options,
                                  Console& console, const std::string& format_option = {});

/// Warns of what open_chain() warns of.
void warn_about(const Chain& chain, Console& console);

}  // namespace qchain
