// Proof that a point in time was kept until the last byte was read.
//
// When a pull job ends, the NBD server goes on for a while and serves the live disk under the same name,
// without any error. A connection that still works proves nothing. Only whoever began the job knows whether
// it still runs, and so is asked after the last read and before anything is published.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "cli/api/qchain.h"

namespace qchain {

/// Whom to ask, as the command line says it. All empty: nobody.
struct OwnerOptions {
  std::string libvirt_domain;        ///< Name, UUID or id.
  std::string connect_uri;           ///< Of libvirt; empty: libvirt's default.
  std::string still_running;         ///< A command for /bin/sh; exit 0: the job is running.
  std::chrono::seconds timeout{60};  ///< For one answer.

  bool names_nobody() const { return libvirt_domain.empty() && connect_uri.empty() && still_running.empty(); }
};

/// Finds the owner and asks for the first time, so that what cannot be proven later is refused before
/// anything is read; nullptr where the options name nobody. `export_name` is the export that is pulled from
/// `nbd_uri`.
///
/// Throws Error: Usage where the options contradict each other, this build knows no libvirt, the domain does
/// not exist, or its backup job is not the one behind the URI (no such export, another server, push mode); Io
/// where libvirt cannot be reached; Inconclusive where no job is running, or that cannot be told within the
/// time-out.
std::unique_ptr<JobOwner> open_owner(const OwnerOptions& options, const std::string& export_name,
                                     const std::string& nbd_uri);

}  // namespace qchain
