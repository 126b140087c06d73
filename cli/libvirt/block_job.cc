#include "cli/libvirt/block_job.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/api/text.h"
#include "extent/error.h"

namespace qchain {

std::vector<BlockJob> parse_jobs(const std::string& answer) {
  std::vector<BlockJob> jobs;
  try {
    const nlohmann::json document = nlohmann::json::parse(answer);
    for (const nlohmann::json& job : document.at("return")) {
      jobs.push_back({job.at("id"), job.at("type"), job.at("status")});
    }
  } catch (const nlohmann::json::exception&) {
    throw Error(Outcome::Io, fmt::format("QEMU's reply to query-jobs is not a list of jobs: {}",
                                         escaped(answer.substr(0, 200))));
  }
  return jobs;
}

std::optional<BlockJob> backup_job_of(const std::vector<BlockJob>& jobs, const std::string& target) {
  const std::string prefix = fmt::format("backup-{}-", target);
  std::optional<BlockJob> found;
  for (const BlockJob& job : jobs) {
    if (job.type != "backup" || !job.id.starts_with(prefix)) continue;
    if (found) {
      throw Error(Outcome::Io, fmt::format("QEMU has two backup jobs of disk {}: {} and {}", escaped(target),
                                           escaped(found->id), escaped(job.id)));
    }
    found = job;
  }
  return found;
}

}  // namespace qchain
