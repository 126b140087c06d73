#include "verify/chain_proof.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "extent/cancellation.h"
#include "verify/device_digest.h"

namespace qchain {

namespace {

// Whether layer `index` inherits nothing in `range`.
bool hides(const Chain& chain, std::size_t index, const GuestRange& range) {
  for (GuestRange rest = intersect(range, guest_range(0, chain.layers()[index].virtual_size()));
       !rest.empty();) {
    for (const Mapping& mapping : chain.map_layer_alone(index, rest)) {
      if (mapping.kind == Kind::Inherit) return false;
      rest.begin = mapping.range.end;
    }
  }
  return true;
}

// The disk that layer `index` and those below it describe.
class DiskAt : public BlockDevice {
 public:
  DiskAt(const Chain& chain, std::size_t index) : chain_(chain), index_(index) {}
  std::string name() const override { return chain_.layers()[index_].path(); }
  std::uint64_t size() const override { return chain_.layers()[index_].virtual_size(); }
  std::unique_ptr<Reader> open_reader() override { return chain_.open_reader_at(index_); }
  Extents extents(const GuestRange& range) override {
    Extents extents;
    for (const Mapping& mapping : chain_.map(range, index_)) {
      qchain::append(extents, {mapping.range, mapping.kind == Kind::Data ? Kind::Data : Kind::Zero});
    }
    return extents;
  }

 private:
  const Chain& chain_;
  const std::size_t index_;
};

// Whether the only difference is which blocks the layer holds: the content of the blocks matches the
// manifest.
bool is_about_structure(const Proof& proof) {
  return proof.lists_all() && std::ranges::all_of(proof.different, [](const Discrepancy& damage) {
           return damage.found == damage.expected || damage.expected == "not held";
         });
}

// For a layer that another tool has rewritten: reads the whole disk, and clears the findings about the
// layer's structure if the content is the recorded one. `rewritten_below`: a layer below was rewritten.
void compare_whole(const Chain& chain, std::size_t index, bool rewritten_below, const ProofOptions& options,
                   LayerProof& layer) {
  ManifestVerdict& manifest = layer.manifest;
  const std::optional<ContentDigest> recorded = manifest.belongs && manifest.summary->root
                                                    ? manifest.summary->disk_digest()
                                                    : digest_in_header(chain.layers()[index]);
  if (!recorded || (manifest.exists && !manifest.belongs)) return;
  if (manifest.exists && manifest.summary->header.length != chain.layers()[index].true_length()) return;
  if (layer.proof && layer.proof->unread_bytes != 0) return;
  const bool damaged = layer.proof && layer.proof->different_bytes != 0;
  const bool rewritten = manifest.is_misplaced || (!manifest.exists && chain.has_link_problem(index)) ||
                         (manifest.exists && rewritten_below) ||
                         (damaged && is_about_structure(*layer.proof));
  if (!rewritten) return;
  DiskAt disk(chain, index);
  const Digest found = digest_of(disk, chain.layers()[index].true_length(),
                                 {recorded->algorithm, options.workers, options.progress});
  if (found != recorded->bytes) return;
  layer.same_content = recorded;
  manifest.outcome = Outcome::Done;
  manifest.problems.clear();
  if (!layer.proof) return;
  layer.proof->different.clear();
  layer.proof->different_bytes = 0;
}

Outcome outcome_of(const Proof& proof) {
  Outcome outcome = proof.outcome();
  if (proof.stopped_at || proof.unknown_bytes != 0) outcome = worse(outcome, Outcome::Incomplete);
  return outcome;
}

// Runs a step of the work on a layer; records a failure in `layer`.
template <class Step>
void attempt(LayerProof& layer, Step&& step) {
  if (layer.failure.outcome != Outcome::Done) return;
  try {
    step();
  } catch (const Error& error) {
    if (is_cancelled(error)) throw;
    layer.failure = {error.outcome(), error.what()};
  }
}

// Whether a layer below was rewritten by another tool, and nothing worse.
bool is_rewritten_below(std::span<const LayerProof> lower) {
  const auto readable = [](const LayerProof& layer) {
    return !layer.manifest.exists || layer.manifest.belongs;
  };
  return std::ranges::all_of(lower, readable) &&
         std::ranges::any_of(lower, [](const LayerProof& layer) { return layer.manifest.is_misplaced; });
}

// Compares what layer `index` holds with its manifest; the layers below are done.
void prove_content(RestorePoints& points, std::size_t index, const ProofOptions& options,
                   std::vector<LayerProof>& layers) {
  const Chain& chain = points.chain();
  LayerProof& layer = layers[index];
  const bool usable =
      layer.manifest.belongs && layer.manifest.summary->header.length <= chain.layers()[index].virtual_size();
  if (usable) layer.proof = prove_layer(points, index, options);
  if (options.selection.is_everything() && !options.deadline) {
    compare_whole(chain, index, is_rewritten_below(std::span(layers).subspan(index + 1)), options, layer);
  }
  if (!layer.proof) return;
  for (Discrepancy& damage : layer.proof->different) {
    if (damage.cause != Cause::Missed) continue;
    damage.cause = cause_from_lower_layers(chain, index, damage.range, [&](std::size_t below) {
      return layers[below].proof ? &*layers[below].proof : nullptr;
    });
  }
}

}  // namespace

Cause cause_from_lower_layers(const Chain& chain, std::size_t index, const GuestRange& range,
                              const std::function<const Proof*(std::size_t)>& proof_of) {
  for (std::size_t below = index + 1; below < chain.layers().size(); ++below) {
    const Proof* const proof = proof_of(below);
    if (proof == nullptr) return Cause::Unknown;
    if (proof->touches(range)) return Cause::Below;
    if (!proof->lists_all() || proof->stopped_at) return Cause::Unknown;
    if (hides(chain, below, range)) break;
  }
  return Cause::Missed;
}

Outcome LayerProof::outcome() const {
  Outcome outcome = worse(manifest.outcome, failure.outcome);
  if (!manifest.exists || !manifest.summary || !manifest.summary->root) {
    outcome = worse(outcome, Outcome::Incomplete);
  }
  return worse(outcome, proof ? outcome_of(*proof) : Outcome::Incomplete);
}

std::vector<LayerProof> check_manifests(RestorePoints& points) {
  std::vector<LayerProof> layers(points.chain().layers().size());
  points.fold_all();
  bool all_readable = true;  // of the layers below
  bool all_in_place = true;
  for (std::size_t i = layers.size(); i-- > 0;) {
    LayerProof& layer = layers[i];
    layer.file = points.chain().layers()[i].path();
    attempt(layer, [&] {
      // The root can be computed only from valid manifests.
      const bool followed = all_readable && all_in_place;
      layer.manifest = followed ? points.verdict_with_root(i) : points.verdict(i);
      if (followed || !layer.manifest.belongs) return;
      layer.manifest.outcome = worse(layer.manifest.outcome, Outcome::Incomplete);
      layer.manifest.problems.push_back(fmt::format(
          "{}: its root cannot be checked against the layers below: {}", points.manifest(i)->path(),
          all_readable ? "a layer below was rewritten since" : "a manifest below is unreadable or invalid"));
    });
    all_readable = all_readable && (!layer.manifest.exists || layer.manifest.belongs);
    all_in_place = all_in_place && !layer.manifest.is_misplaced;
  }
  return layers;
}

std::vector<LayerProof> prove_chain(RestorePoints& points, const ProofOptions& options) {
  std::vector<LayerProof> layers = check_manifests(points);
  ProofOptions proof = options;
  for (std::size_t i = layers.size(); i-- > 0;) {
    attempt(layers[i], [&] { prove_content(points, i, proof, layers); });
    if (layers[i].proof) proof.max_listed -= std::min(proof.max_listed, layers[i].proof->different.size());
  }
  return layers;
}

}  // namespace qchain
