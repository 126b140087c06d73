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

// What tells this job from any other.
struct JobFacts {
  OwnedDisk disk;
  int run_id = -1;
  std::string
      backup_xml;  // holds the number of the scratch node, which no two jobs of one run of the domain share
  std::string job_id;
  bool local = false;
};

// Where a job was to be, and is not, or not as it should be.
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

// Which of the domain's disks is pulled; throws where that is not one of this job.
std::string target_of(const JobFacts& facts, const std::string& export_name, const std::string& nbd_uri) {
  const std::string& domain = facts.disk.domain_name;
  const BackupXml job = parse_backup_xml(facts.backup_xml);
  const NbdAddress address = nbd_address(nbd_uri);
  const auto refuse = [&](const std::string& why) {
    throw Error(Outcome::Usage, fmt::format("{}: is not of the backup job of libvirt domain {}: {}",
                                            escaped(nbd_uri), escaped(domain), why));
  };
  if (!job.pull) refuse("that is a push job, which exports nothing");
  const std::string elsewhere = mismatch(address, job.server, facts.local);
  if (!elsewhere.empty()) refuse(elsewhere);
  return disk_of_export(job, domain, export_name.empty() ? address.export_name : export_name).target;
}

// The block job of a disk, by QEMU's own word; throws where it does not run.
BlockJob running_job(const LibvirtDomain& domain, const std::string& target) {
  const std::vector<BlockJob> jobs = parse_jobs(domain.monitor(R"({"execute": "query-jobs"})"));
  const std::optional<BlockJob> job = backup_job_of(jobs, target);
  if (!job)
    not_running(domain.name(), fmt::format("QEMU has no backup job of disk {} any more", escaped(target)));
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
    not_running(domain.name(), "no backup job is running; begin one (virsh backup-begin), and pull then");
  facts.backup_xml = *xml;
  facts.disk.target = target_of(facts, export_name, nbd_uri);
  facts.job_id = running_job(domain, facts.disk.target).id;
  return facts;
}

// Throws unless the job of `facts` is running. QEMU is asked first: as a job's XML never comes back, what
// holds of the XML afterwards held when QEMU answered, and the answer was about this job and no later one.
void confirm(const std::string& connect_uri, const JobFacts& facts) {
  const LibvirtDomain domain(connect_uri, facts.disk.domain_uuid);
  const BlockJob job = running_job(domain, facts.disk.target);
  if (domain.run_id() != facts.run_id) not_running(domain.name(), "the guest was restarted meanwhile");
  if (domain.backup_xml() != facts.backup_xml || job.id != facts.job_id) {
    not_running(domain.name(), "its backup job is another one than at the beginning");
  }
}

enum class Unreachable { Fail, TryAgain };

// Makes a call, and makes it again where libvirtd was busy or, if wanted, unreachable: until the deadline.
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

// A connection for each question: it outlives a restart of libvirtd, and a call that nobody waits for any
// more owns it.
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
              "{}: what was read may be of two points in time; begin a new backup job, and start over",
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
