#pragma once

#include <memory>
#include <string>

#include "cli/console.h"
#include "cli/options.h"
#include "qcow2/chain.h"

namespace qchain {

/// Opens a chain as the options allow, and warns of layers that QEMU has marked as corrupt. Throws Error.
std::unique_ptr<Chain> open_chain(const std::string& path, ImageFormat format, const CommonOptions& options,
                                  Console& console);

}  // namespace qchain
