#include "cli/api/inspect.h"

#include <fmt/format.h>

#include <memory>
#include <utility>

#include "cli/api/active_run.h"
#include "cli/api/proof_log.h"
#include "extent/cancellation.h"
#include "qcow2/bitmap.h"
#include "qcow2/chain.h"
#include "qcow2/snapshot.h"
#include "verify/proof.h"
#include "verify/restore_points.h"
#include "verify/signature.h"

namespace qchain {

namespace {

constexpr std::size_t kMaxListed = 1000;  // snapshots or bitmaps of one layer

InspectedImage value_of(const Image& image) {
  const Header& header = image.header();
  InspectedImage value;
  value.version = header.version;
  value.cluster_size = image.geometry().cluster_size();
  value.features = header.features();
  value.backing_file = header.backing_name;
  value.backing_format = header.backing_format;
  value.data_file = header.data_file_name;
  value.is_data_file_open = image.has_data_file();
  return value;
}

InspectedManifest value_of(const ManifestSummary& manifest) {
  InspectedManifest value;
  value.algorithm = to_string(manifest.header.algorithm);
  value.is_cryptographic = is_cryptographic(manifest.header.algorithm);
  value.root = text_of(manifest.disk_digest());
  if (manifest.signature) {
    value.signing_key = hex(manifest.signature->key);
    value.has_valid_signature = is_own_signature(*manifest.signature, manifest.own_digest);
  }
  value.origin = to_string(manifest.header.origin);
  value.time = manifest.header.time;
  value.sealed_time = manifest.header.sealed_time;
  return value;
}

// One call of inspect().
class Inspection {
 public:
  explicit Inspection(const InspectRequest& request) : request_(request) {}

  InspectResult result(const Cancellation* cancellation) {
    Survey surveyed = survey(request_.image, ImageFormat::Qcow2, request_.open);
    result_.is_complete = surveyed.is_whole();
    for (const Survey::Problem& problem : surveyed.problems) {
      const bool is_open = problem.layer < surveyed.layers.size();
      add(is_open ? std::optional(problem.layer) : std::nullopt,
          {problem.outcome, problem.message, problem.remedy});
    }
    for (const Layer& layer : surveyed.layers) add_layer(layer);
    if (request_.map && result_.is_complete) add_map(std::move(surveyed), cancellation);
    return std::move(result_);
  }

 private:
  void add(std::optional<std::size_t> layer, Verdict verdict) {
    result_.outcome = worse(result_.outcome, verdict.outcome);
    result_.problems.push_back({layer, std::move(verdict)});
  }

  // Of the layer that was added last.
  void add_unread(Verdict verdict) {
    result_.is_complete = false;
    add(result_.layers.size() - 1, std::move(verdict));
  }

  // What keeps a step from its end is a problem of the layer that was added last.
  template <class Step>
  void attempt(Step&& step) {
    try {
      step();
    } catch (const Error& error) {
      if (is_cancelled(error)) throw;
      add_unread({error.outcome(), error.what(), error.remedy()});
    }
  }

  void add_layer(const Layer& layer) {
    InspectedLayer& inspected = result_.layers.emplace_back();
    inspected.file = layer.path();
    inspected.virtual_size = layer.virtual_size();
    inspected.file_bytes = layer.file().size();
    inspected.disk_bytes = layer.file().allocated_bytes();
    inspected.identity = layer.identity();
    if (layer.image() != nullptr) inspected.image = value_of(*layer.image());
    attempt([&] { add_manifest(layer, inspected); });
    attempt([&] {
      if (layer.image() != nullptr) {
        add_lists(*layer.image(), *inspected.image);
        layer.image()->require_readable();
      }
      inspected.usage = usage_of(layer);
    });
  }

  void add_manifest(const Layer& layer, InspectedLayer& inspected) {
    const std::string path = manifest_of(layer);
    if (!manifest_exists(path)) return;
    const ManifestSummary summary = Manifest(path).summary();
    inspected.manifest = value_of(summary);
    if (summary.signature && !inspected.manifest->has_valid_signature) {
      add(result_.layers.size() - 1,
          {Outcome::BadManifest,
           fmt::format("{}: its signature was not made with the key that it names", path), Remedy::None});
    }
    // A proof of something that was stored here before does not count.
    std::optional<LoggedProof> proof = last_proof(layer.path());
    if (proof && proof->manifest == summary.own_digest.hex()) inspected.last_proof = std::move(proof);
  }

  // What is listed beside the disk: it can be damaged while the disk is not.
  void add_lists(const Image& image, InspectedImage& inspected) {
    const auto require_all = [&](const char* what, const std::string& problem) {
      if (problem.empty()) return;
      add_unread({Outcome::Incomplete, fmt::format("{}: {}: {}", image.file().path(), what, problem)});
    };
    const SnapshotList snapshots = read_snapshots(image, kMaxListed);
    require_all("snapshots", snapshots.problem);
    for (const Snapshot& snapshot : snapshots.snapshots) {
      inspected.snapshots.push_back(
          {snapshot.id, snapshot.name, snapshot.seconds, snapshot.disk_bytes, snapshot.vm_state_bytes});
    }
    const BitmapList bitmaps = read_bitmaps(image, kMaxListed);
    require_all("bitmaps", bitmaps.problem);
    for (const BitmapInfo& info : bitmaps.bitmaps) {
      const Bitmap& bitmap = info.bitmap;
      inspected.bitmaps.push_back({bitmap.name, bitmap.granularity(), bitmap.automatic(), bitmap.in_use(),
                                   info.dirty_bytes, info.unusable});
    }
  }

  // In windows, so that memory does not grow with the map.
  void add_map(Survey surveyed, const Cancellation* cancellation) {
    const std::shared_ptr<const Chain> chain = Chain::open(std::move(surveyed));
    result_.map = [chain, cancellation, rest = guest_range(0, chain->size()), window = std::vector<Mapping>(),
                   next = std::size_t{0}]() mutable -> std::optional<MapPiece> {
      if (next == window.size()) {
        if (rest.empty()) return std::nullopt;
        const CancellationScope scope(cancellation != nullptr ? cancellation : CancellationScope::current());
        window = chain->map(rest);
        rest.begin = window.back().range.end;
        next = 0;
      }
      const Mapping& mapping = window[next++];
      return MapPiece{mapping.range, source_of(mapping)};
    };
  }

  const InspectRequest& request_;
  InspectResult result_;
};

}  // namespace

InspectResult inspect(const InspectRequest& request, const Run& how) {
  const ActiveRun run(how);
  if (request.image.empty()) throw Error(Outcome::Usage, "missing image");
  return Inspection(request).result(how.cancellation);
}

}  // namespace qchain
