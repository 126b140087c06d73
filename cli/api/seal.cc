#include "cli/api/seal.h"

#include <optional>
#include <utility>

#include "cli/api/active_run.h"
#include "cli/api/nbd_access.h"
#include "cli/api/new_layer.h"
#include "cli/api/open_chain.h"
#include "verify/seal.h"

namespace qchain {

SealResult seal(const SealRequest& request, const Run& how) {
  const ActiveRun run(how);
  if (request.image.empty()) throw Error(Outcome::Usage, "missing image");
  std::optional<SigningKey> key;
  if (!request.sign_key.empty()) key.emplace(request.sign_key);
  OpenedChain opened = open_chain(request.image, ImageFormat::Qcow2, request.open, Links::Warn, run);
  const std::vector<Layer>& layers = opened.chain->layers();
  SealOptions options;
  options.workers = worker_count(run.workers(), Work::Read);
  options.key = key ? &*key : nullptr;
  options.accept_changed = request.accept_changed;
  options.trusted = trusted_keys(request.trust_keys);
  options.time = recorded_time();
  SealResult result;
  ChainSeal seal(opened.points, options);
  for (std::size_t i = layers.size(); i-- > 0;) {
    options.progress = run.progress("seal", layers[i].virtual_size());
    const Sealed sealed = seal.add(i);
    const ManifestSummary& summary = opened.points.manifest(i)->summary();
    result.layers.push_back({i, layers[i].path(), sealed, text_of(summary.disk_digest()),
                             text_of(summary.header.accepted), summary.signature.has_value()});
  }
  seal.publish();
  return result;
}

}  // namespace qchain
