// Confirms that the backup job was still running after the last read.
//
// When a pull-mode job ends, the NBD server may continue to serve the live disk under the same name, without
// any error: a working connection proves nothing. Only the program that started the job knows whether it is
// still running, so it is asked after the last read, before anything is published.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "cli/api/qchain.h"

namespace qchain {

/// The job owner to ask, from the command line. All empty: none.
struct OwnerOptions {
  std::string libvirt_domain;        ///< Name, UUID or id.
  std::string connect_uri;           ///< libvirt connection URI; empty: libvirt's default.
  std::string still_running;         ///< A command for /bin/sh; exit 0: the job is running.
  std::chrono::seconds timeout{60};  ///< For one reply.

  bool is_empty() const { return libvirt_domain.empty() && connect_uri.empty() && still_running.empty(); }
};

/// Finds the owner and asks it once, so that a job that cannot be confirmed is refused before anything is
/// read; nullptr if the options name no owner. `export_name`: the export that is pulled from `nbd_uri`.
///
/// Throws Error: Usage if the options contradict each other, this build does not support libvirt, the domain
/// does not exist, or its backup job does not match the URI (no such export, another server, push mode); Io
/// if libvirt cannot be reached; Inconclusive if no job is running, or there is no reply within the timeout.
std::unique_ptr<JobOwner> open_owner(const OwnerOptions& options, const std::string& export_name,
                                     const std::string& nbd_uri);

}  // namespace qchain
