#pragma once

#include <string>

#include "cli/job_owner.h"
#include "cli/progress.h"
#include "extent/nbd_export.h"
#include "extent/nbd_session.h"
#include "qcow2/chain.h"

namespace qchain {

class CommandLine;

/// What every command takes.
struct CommonOptions {
  bool json = false;  ///< Set even where the words cannot be parsed.
  ProgressStyle progress = ProgressStyle::Auto;
  OpenOptions open;
};

/// What workers do. Those that write too wait for their writes now and then, so that twice as many are
/// faster.
enum class Work { Read, ReadAndWrite };

/// What every command takes that talks to an export.
struct NbdOptions {
  unsigned connections = 0;  ///< 0: by what cores and server allow.
  unsigned requests = 0;     ///< In flight on each connection; 0: the default.
  unsigned timeout = 0;      ///< Seconds for one answer of the server; 0: the default.
  std::string tls_certificates;
  std::string tls_psk_file;

  NbdTarget target(const std::string& uri) const;
  unsigned workers(Work work) const;
  /// The same for those that read `live`.
  unsigned workers_for(NbdExport& live, Work work) const;
};

/// qcow2 or raw. Throws Error (Usage) for another name.
ImageFormat image_format_named(const std::string& name);

/// Adds the options that set `options`, under a heading of their own. The common ones, with --help, are the
/// last.
void add_nbd_options(CommandLine& line, NbdOptions& options);
void add_owner_options(CommandLine& line, OwnerOptions& options);
void add_common_options(CommandLine& line, CommonOptions& options);

}  // namespace qchain
