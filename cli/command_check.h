#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "cli/job_owner.h"

namespace qchain {

/// The owner of a job that is asked by a command: `/bin/sh -c COMMAND` exits with 0 where the job is running.
/// It is run here once, so that a command that cannot work is found before anything is read, and by each
/// require_running().
///
/// The command runs in a process group of its own, reads nothing, has its output on our standard error, and
/// inherits no other descriptor. A command that takes longer than `timeout`, and on a signal any command, is
/// ended with its group. Throws Error (Inconclusive) as require_running() does.
std::unique_ptr<JobOwner> open_command_owner(const std::string& command, std::chrono::seconds timeout);

}  // namespace qchain
