#include "cli/api/nbd_access.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "extent/engine.h"

namespace qchain {

NbdTarget nbd_target(const NbdOptions& options, const std::string& uri) {
  NbdTarget target;
  target.uri = uri;
  target.tls_certificates = options.tls_certificates;
  target.tls_psk_file = options.tls_psk_file;
  if (options.requests != 0) target.requests_in_flight = options.requests;
  if (options.timeout != 0) {
    target.timeout = target.connect_timeout = std::chrono::seconds(options.timeout);
  }
  return target;
}

unsigned worker_count(unsigned wanted, Work work) {
  if (wanted != 0) return std::min(wanted, kMaxWorkers);
  return work == Work::Read ? default_workers() : std::min(kMaxWorkers, 2 * default_workers());
}

unsigned worker_count(const NbdOptions& options, unsigned wanted, Work work) {
  return worker_count(options.connections != 0 ? options.connections : wanted, work);
}

unsigned worker_count(const NbdOptions& options, unsigned wanted, NbdExport& live, Work work) {
  const unsigned workers = worker_count(options, wanted, work);
  return options.connections != 0 || wanted != 0 ? workers : std::max(workers, live.useful_readers());
}

void warn_about_recovery(const NbdExport& live, const ActiveRun& run) {
  const Recovered recovered = live.recovered();
  if (recovered.failed_requests == 0 && recovered.reconnects == 0) return;
  run.warn(
      fmt::format("{}: {} requests failed and were retried, {} connections were lost and reopened; all data "
                  "was read, but check the server's storage",
                  live.name(), recovered.failed_requests, recovered.reconnects));
}

void require_point_in_time(NbdExport& live, JobOwner* owner) {
  live.confirm();
  if (owner != nullptr) owner->require_running();
}

std::string point_in_time(const JobOwner* owner) {
  return owner != nullptr ? owner->description() : "end of the job not excluded";
}

std::string source_of(const NbdExport& live) {
  return live.is_read_only() ? "read-only export" : "writable export";
}

}  // namespace qchain
