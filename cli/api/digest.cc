#include <memory>
#include <optional>

#include "cli/api/active_run.h"
#include "cli/api/nbd_access.h"
#include "cli/api/open_chain.h"
#include "cli/api/qchain.h"
#include "verify/device_digest.h"

namespace qchain {

namespace {

DigestResult digest_with(Algorithm algorithm, BlockDevice& device, std::uint64_t length, unsigned workers,
                         const ActiveRun& run) {
  const Digest digest = digest_of(device, length, {algorithm, workers, run.progress("digest", length)});
  return {to_string(algorithm), is_cryptographic(algorithm), digest.hex(), length};
}

DigestResult digest_export(const DigestRequest& r, Algorithm algorithm, const ActiveRun& run) {
  NbdExport live(nbd_target(r.nbd, r.source), {});
  const unsigned workers = worker_count(r.nbd, run.workers(), live, Work::Read);
  DigestResult result = digest_with(algorithm, live, live.size(), workers, run);
  require_point_in_time(live, r.owner);
  return result;
}

}  // namespace

DigestResult digest(const DigestRequest& r, const Run& how) {
  const ActiveRun run(how);
  const Algorithm algorithm = algorithm_named(r.algorithm);
  if (is_nbd_uri(r.source)) return digest_export(r, algorithm, run);
  if (r.owner != nullptr) throw Error(Outcome::Usage, "an owner can be given only for an export");
  const OpenedChain source = open_chain(r.source, r.is_raw ? ImageFormat::Raw : ImageFormat::Qcow2, r.open,
                                        Links::Warn, run, Remedy::SourceIsRaw);
  return digest_with(algorithm, *source.chain, source.chain->top().true_length(),
                     worker_count(r.nbd, run.workers(), Work::Read), run);
}

}  // namespace qchain
