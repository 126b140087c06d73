#include "cli/libvirt/libvirt_owner.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>

#include "cli/libvirt/backup_xml.h"
#include "cli/libvirt/block_job.h"
#include "cli/libvirt/domain.h"
#include "cli/libvirt/nbd_address.h"
#include "cli/libvirt/timed_call.h"
#include "cli/api/text.h"
#include "extent/error.h"

namespace qchain {

namespace {

using Clock = std::chrono::steady_clock;

// What identifies this job.
struct JobFacts {
  OwnedDisk disk;
  int run_id = -1;
  std::string backup_xml;  // has the number of the scratch node, which is unique while the domain runs
  std::string job_id;
  bool local = false;
};

// The job is not running, or not as expected.
[[noreturn]] void not_running(const std::string& domain, const std::string& why) {
  throw Error(Outcome::Inconclusive, fmt::format("libvirt domain {}: {}", escaped(domain), why));
}

const BackupDisk& disk_of_export(const BackupXml& job, const std::string& domain,
                                 const std::string& export_name) {
  const auto found = std::ranges::find(job.disks, export_name, &BackupDisk::export_name);
  if (found != job.disks.end()) return *found;
  std::string exports;
  for (const BackupDisk& disk : job.disks) exports += (exports.empty() ? "" : ", ") + disk.export_name;
  throw Error(Outcome::Usage, fmt::format("libvirt domain {}: its backup job has no export \"{}\"; it has {}",
                                          escaped(domain), escaped(export_name), escaped(exports)));
}

// The disk that is pulled; throws if it is not part of this job.
std::string target_of(const JobFacts& facts, const std::string& export_name, const std::string& nbd_uri) {
  const std::string& domain = facts.disk.domain_name;
  const BackupXml job = parse_backup_xml(facts.backup_xml);
  const NbdAddress address = nbd_address(nbd_uri);
  const auto refuse = [&](const std::string& why) {
    throw Error(Outcome::Usage, fmt::format("{}: does not belong to the backup job of libvirt domain {}: {}",
                                            escaped(nbd_uri), escaped(domain), why));
  };
  if (!job.pull) refuse("it is a push-mode job, which has no export");
  const std::string elsewhere = mismatch(address, job.server, facts.local);
  if (!elsewhere.empty()) refuse(elsewhere);
  return disk_of_export(job, domain, export_name.empty() ? address.export_name : export_name).target;
}

// The block job of a disk according to QEMU; throws if it is not running.
BlockJob running_job(const LibvirtDomain& domain, const std::string& target) {
  const std::vector<BlockJob> jobs = parse_jobs(domain.monitor(R"({"execute": "query-jobs"})"));
  const std::optional<BlockJob> job = backup_job_of(jobs, target);
  if (!job)
    not_running(domain.name(), fmt::format("QEMU no longer has a backup job for disk {}", escaped(target)));
  if (!job->is_alive()) {
    not_running(domain.name(), fmt::format("QEMU's backup job {} is {}, no longer running", escaped(job->id),
                                           escaped(job->status)));
  }
  return *job;
}

JobFacts learn(const OwnerOptions& options, const std::string& export_name, const std::string& nbd_uri) {
  const LibvirtDomain domain(options.connect_uri, options.libvirt_domain);
  JobFacts facts;
  facts.disk.domain_name = domain.name();
  facts.disk.domain_uuid = domain.uuid();
  facts.run_id = domain.run_id();
  facts.local = domain.is_local();
  const std::optional<std::string> xml = domain.backup_xml();
  if (!xml)
    not_running(domain.name(), "no backup job is running; start one (virsh backup-begin) before the pull");
  facts.backup_xml = *xml;
  facts.disk.target = target_of(facts, export_name, nbd_uri);
  facts.job_id = running_job(domain, facts.disk.target).id;
  return facts;
}

// Throws unless the job of `facts` is running. Queries QEMU first: if the XML is still the same afterwards,
// the reply was about this job and not a later one, because a job's XML does not recur.
void confirm(const std::string& connect_uri, const JobFacts& facts) {
  const LibvirtDomain domain(connect_uri, facts.disk.domain_uuid);
  const BlockJob job = running_job(domain, facts.disk.target);
  if (domain.run_id() != facts.run_id) not_running(domain.name(), "the guest was restarted");
  if (domain.backup_xml() != facts.backup_xml || job.id != facts.job_id) {
    not_running(domain.name(), "its backup job is not the one that was running at the start");
  }
}

enum class Unreachable { Fail, TryAgain };

// Retries a call until the deadline while libvirtd is busy or, if wanted, unreachable.
template <class Call>
auto persist(const Call& call, Unreachable unreachable, Clock::time_point deadline) {
  constexpr std::chrono::milliseconds kPause{100};
  while (true) {
    try {
      return call();
    } catch (const LibvirtError& error) {
      const bool again =
          error.kind() == LibvirtError::Kind::Busy ||
          (error.kind() == LibvirtError::Kind::Unreachable && unreachable == Unreachable::TryAgain);
      if (!again) throw;
      if (Clock::now() + kPause >= deadline) throw Error(Outcome::Inconclusive, error.what());
    }
    std::this_thread::sleep_for(kPause);
  }
}

// Opens a new connection for each query: libvirtd may have been restarted, and an abandoned call owns its
// connection.
class LibvirtOwner : public JobOwner {
 public:
  LibvirtOwner(const OwnerOptions& options, JobFacts facts)
      : connect_uri_(options.connect_uri), timeout_(options.timeout), facts_(std::move(facts)) {}

  void require_running() override {
    try {
      timed_call(
          [uri = connect_uri_, facts = facts_, deadline = Clock::now() + timeout_] {
            persist([&] { confirm(uri, facts); }, Unreachable::TryAgain, deadline);
          },
          timeout_, fmt::format("libvirt domain {}", escaped(facts_.disk.domain_name)));
    } catch (const Error& error) {
      if (is_cancelled(error)) throw;
      throw Error(
          Outcome::Inconclusive,
          fmt::format(
              "{}: the data may be from different points in time; start a new backup job and pull again",
              error.what()));
    }
  }

  std::string description() const override {
    return fmt::format("libvirt domain {}, job {}", facts_.disk.domain_uuid, escaped(facts_.job_id));
  }
  const OwnedDisk* disk() const override { return &facts_.disk; }

 private:
  std::string connect_uri_;
  std::chrono::seconds timeout_;
  JobFacts facts_;
};

}  // namespace

std::unique_ptr<JobOwner> open_libvirt_owner(const OwnerOptions& options, const std::string& export_name,
                                             const std::string& nbd_uri) {
  JobFacts facts = timed_call(
      [=, deadline = Clock::now() + options.timeout] {
        return persist([&] { return learn(options, export_name, nbd_uri); }, Unreachable::Fail, deadline);
      },
      options.timeout, fmt::format("libvirt domain {}", escaped(options.libvirt_domain)));
  return std::make_unique<LibvirtOwner>(options, std::move(facts));
}

}  // namespace qchain
