#pragma once

#include <string>

#include "cli/api/qchain.h"
#include "cli/job_owner.h"
#include "cli/progress.h"
#include "qcow2/chain.h"

namespace qchain {

class CommandLine;

/// Options of all commands.
struct CommonOptions {
  bool json = false;  ///< Set even if parsing fails.
  ProgressStyle progress = ProgressStyle::Auto;
  OpenOptions open;
};

/// qcow2 or raw. Throws Error (Usage) for another name.
ImageFormat image_format_named(const std::string& name);

/// Add options for `options` under their own heading. The common options, with --help, come last; the report
/// options are those that also apply to commands without images.
void add_nbd_options(CommandLine& line, NbdOptions& options);
void add_point_options(CommandLine& line, PointDemand& demand);
void add_owner_options(CommandLine& line, OwnerOptions& options);
void add_report_options(CommandLine& line, CommonOptions& options);
void add_common_options(CommandLine& line, CommonOptions& options);

}  // namespace qchain
