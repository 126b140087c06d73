#pragma once

#include <memory>
#include <string>

#include "cli/job_owner.h"

namespace qchain {

/// The owner of a pull job that was begun with virDomainBackupBegin (`virsh backup-begin`). As open_owner().
///
/// QEMU itself is asked for the block job, through libvirt. libvirt's own state tells one job from the next
/// of the same name, but says nothing of whether the job still runs: libvirtd learns of its end only when its
/// job lock is free.
std::unique_ptr<JobOwner> open_libvirt_owner(const OwnerOptions& options, const std::string& export_name,
                                             const std::string& nbd_uri);

}  // namespace qchain
