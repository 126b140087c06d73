#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "cli/job_owner.h"

namespace qchain {

/// A job owner that runs a command: `/bin/sh -c COMMAND` exits with 0 if the job is running. It is run once
/// here, so that a command that does not work is detected before anything is read, and by each
/// require_running().
///
/// The command runs in its own process group with /dev/null as standard input and its output on our standard
/// error; it inherits no other descriptors. It is killed with its group after `timeout`, or when we receive a
/// signal. Throws Error (Inconclusive) like require_running().
std::unique_ptr<JobOwner> open_command_owner(const std::string& command, std::chrono::seconds timeout);

}  // namespace qchain
