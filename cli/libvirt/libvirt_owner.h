#pragma once

#include <memory>
#include <string>

#include "cli/job_owner.h"

namespace qchain {

/// The owner of a pull-mode job started with virDomainBackupBegin (`virsh backup-begin`). See open_owner().
///
/// Queries QEMU for the block job, through libvirt. libvirt's own state distinguishes a job from the next one
/// with the same name, but does not show whether the job is still running: libvirtd notices its end only when
/// its job lock is free.
std::unique_ptr<JobOwner> open_libvirt_owner(const OwnerOptions& options, const std::string& export_name,
                                             const std::string& nbd_uri);

}  // namespace qchain
