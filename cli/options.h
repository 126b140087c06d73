#pragma once

#include <string>

#include "cli/api/qchain.h"
#include "cli/job_owner.h"
#include "cli/progress.h"
#include "qcow2/chain.h"

namespace qchain {

class CommandLine;

/// What every command takes.
struct CommonOptions {
  bool json = false;  ///< Set even where the words cannot be parsed.
  ProgressStyle progress = ProgressStyle::Auto;
  OpenOptions open;
};

/// qcow2 or raw. Throws Error (Usage) for another name.
ImageFormat image_format_named(const std::string& name);

/// Adds the options that set `options`, under a heading of their own. The common ones, with --help, come
/// last; the report options are those of them that a command without images takes too.
void add_nbd_options(CommandLine& line, NbdOptions& options);
void add_owner_options(CommandLine& line, OwnerOptions& options);
void add_report_options(CommandLine& line, CommonOptions& options);
void add_common_options(CommandLine& line, CommonOptions& options);

}  // namespace qchain
