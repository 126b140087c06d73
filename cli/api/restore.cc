#include <fmt/format.h>

#include <memory>

#include "cli/api/open_chain.h"
#include "cli/api/point_check.h"
#include "cli/api/qchain.h"
#include "cli/api/restore_job.h"

namespace qchain {

namespace {

void require_valid(const RestoreRequest& r) {
  const auto usage = [](const char* message) { throw Error(Outcome::Usage, message); };
  if (r.image.empty()) usage("missing image");
  if (r.no_verify && !r.trust_keys.empty()) {
    usage("trusted keys cannot be used without verification");
  }
  if (r.salvage && (r.no_verify || !r.trust_keys.empty())) {
    usage("salvage cannot be combined with no verification or with trusted keys");
  }
  require_valid(r.point);
  if (!r.point.is_empty() && (r.no_verify || r.salvage)) {
    usage("a point cannot be asked for where manifests are not relied on");
  }
  if (r.as_layer && r.read_back) usage("reading back is only for raw output: verify the new layer instead");
}

// Checks all manifests before anything is written.
void require_good_manifests(const std::vector<LayerProof>& layers) {
  for (const LayerProof& layer : layers) {
    if (layer.failure.outcome != Outcome::Done) throw Error(layer.failure.outcome, layer.failure.message);
    const ManifestVerdict& verdict = layer.manifest;
    if (verdict.outcome == Outcome::Done || verdict.outcome == Outcome::Incomplete) continue;
    throw Error(verdict.outcome, fmt::format("{}; nothing was written", verdict.problems.front()),
                Remedy::Salvage);
  }
}

void require_point(const PointInTime& point, const RestoreRequest& r) {
  for (const Verdict& verdict : check_point(point, r.point)) {
    throw Error(verdict.outcome, fmt::format("{}: {}; nothing was written", r.image, verdict.message));
  }
}

// A point that was asked for is told by manifests; they have to cover the disk.
void require_verifiable(const RestoreJob& job) {
  if (job.proof.digests && job.proof.root_follows) return;
  throw Error(
      Outcome::BadManifest,
      fmt::format("{}: the manifests do not cover the disk at the point that was asked for; nothing was "
                  "written",
                  job.request.image),
      Remedy::Seal);
}

// A salvage uses only valid manifests.
bool are_good(const std::vector<LayerProof>& layers, const ActiveRun& run) {
  bool good = true;
  for (const LayerProof& layer : layers) {
    for (const std::string& problem : layer.manifest.problems) run.warn(problem);
    if (layer.failure.outcome != Outcome::Done) run.warn(layer.failure.message);
    const Outcome outcome = worse(layer.failure.outcome, layer.manifest.outcome);
    good = good && (outcome == Outcome::Done || outcome == Outcome::Incomplete);
  }
  return good;
}

RestoreProof prepare_proof(const RestoreRequest& r, OpenedChain& from, const ActiveRun& run) {
  RestoreProof proof;
  if (r.no_verify) return proof;
  const std::vector<LayerProof> layers = check_manifests(from.points);
  if (!r.salvage) require_good_manifests(layers);
  if (r.salvage && !are_good(layers, run)) return proof;
  proof.digests = from.points.digests(0);
  const ManifestVerdict& top = layers.front().manifest;
  if (top.summary && top.summary->root) {
    proof.root = top.summary->disk_digest();
    proof.root_follows = top.root_follows;
  }
  // If the manifests are incomplete, the digest in the header covers the whole disk.
  const bool is_told = proof.digests && proof.digests->is_complete() && proof.root_follows;
  if (!is_told && r.trust_keys.empty()) proof.recorded = digest_in_header(from.chain->top());
  return proof;
}

// With salvage and no_verify, a chain with missing or damaged layers is opened as far as possible.
OpenedChain open_to_restore(const RestoreRequest& r, const ActiveRun& run) {
  if (r.salvage) return open_for_salvage(r.image, r.open, run);
  return open_chain(r.image, ImageFormat::Qcow2, r.open, r.no_verify ? Links::Warn : Links::Require, run,
                    Remedy::None, trusted_keys(r.trust_keys));
}

RestoreResult result_of(const RestoreJob& job, bool is_in_place) {
  RestoreResult result;
  const bool proven = job.losses.is_clean() && (job.is_verified() || job.request.no_verify);
  result.outcome = worse(proven ? Outcome::Done : Outcome::Incomplete, job.read_back_outcome());
  result.length = job.chain.top().true_length();
  result.virtual_size = job.chain.size();
  result.data_bytes = job.copied.data_bytes;
  result.zero_bytes = job.copied.zero_bytes;
  result.rest_bytes = job.rest_bytes;
  result.is_in_place = is_in_place;
  result.has_manifest = job.proof.digests != nullptr;
  result.is_verified = job.is_verified() && !job.request.no_verify;
  result.has_recorded_digest = job.recorded_matches;
  result.unknown_bytes = job.unknown_bytes;
  result.root = text_of(job.proof.root);
  result.layer_id = job.layer_id;
  if (job.is_lenient()) result.losses = job.losses;
  result.read_back = job.read_back;
  return result;
}

}  // namespace

RestoreResult restore(const RestoreRequest& r, const Run& how) {
  const ActiveRun run(how);
  require_valid(r);
  OpenedChain from = open_to_restore(r, run);
  const PointInTime point = top_point(from.points);
  require_point(point, r);
  const std::unique_ptr<RestoreTarget> target = open_restore_target(r, *from.chain, run);
  RestoreJob job{r, run, *from.chain, from.points, prepare_proof(r, from, run), 0, false, {}, {}, {}, 0, {}};
  if (!r.point.is_empty()) require_verifiable(job);
  record_seen(point, r.point);
  target->write(job);
  RestoreResult result = result_of(job, target->is_in_place());
  result.point = point;
  return result;
}

}  // namespace qchain
