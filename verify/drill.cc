#include "verify/drill.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace qchain {

namespace {

std::string manifest_of(const Chain& chain, std::size_t index) {
  return qchain::manifest_of(chain.layers()[index]);
}

std::string or_unknown(const std::string& text) { return text.empty() ? "unknown" : text; }

std::string root_of(const ManifestSummary& summary) {
  return summary.root ? named(summary.header.algorithm, *summary.root) : std::string();
}

// Judges one manifest: every complaint is one line of the verdict.
class ManifestJudge {
 public:
  ManifestJudge(const Chain& chain, std::size_t index)
      : chain_(chain), index_(index), layer_(chain.layers()[index]), path_(manifest_of(chain, index)) {}

  ManifestVerdict judge(const std::vector<TrustedKey>& trusted, Depth depth) {
    verdict_.exists = has_manifest(chain_, index_);
    if (!verdict_.exists) {
      if (!trusted.empty()) complain(Outcome::BadManifest, "is not there, so nothing is signed");
      return std::move(verdict_);
    }
    try {
      verdict_.summary = read_manifest(path_);
    } catch (const Error& error) {
      if (error.outcome() != Outcome::BadManifest) throw;
      verdict_.outcome = Outcome::BadManifest;
      verdict_.problems.emplace_back(error.what());
      return std::move(verdict_);
    }
    judge_identity();
    judge_signature(trusted);
    // What is said of the chain counts only from a manifest that belongs here.
    verdict_.belongs = verdict_.outcome == Outcome::Done;
    if (verdict_.belongs) judge_kind_and_length();
    if (verdict_.outcome == Outcome::Done && depth == Depth::Chain) judge_root();
    return std::move(verdict_);
  }

 private:
  const ManifestHeader& header() const { return verdict_.summary->header; }

  void complain(Outcome outcome, const std::string& what) {
    verdict_.outcome = worse(verdict_.outcome, outcome);
    verdict_.problems.push_back(fmt::format("{}: {}", path_, what));
  }

  // What the layer and its manifest both say has to be the same.
  void judge_identity() {
    const std::optional<Identity> identity = layer_.identity();
    const auto compare = [&](const char* what, const std::string& in_manifest, const std::string& in_layer) {
      if (in_manifest == in_layer) return;
      complain(
          Outcome::BadManifest,
          fmt::format("says that {} is {}, and {} says {}; put the manifest back that was written with it",
                      what, or_unknown(in_manifest), layer_.path(), or_unknown(in_layer)));
    };
    if (identity) {
      compare("the layer", header().layer_id, identity->id);
      compare("the parent", header().parent_id, identity->parent_id);
      compare("the checkpoint", header().checkpoint, identity->checkpoint);
      compare("what its changes count from", header().since, identity->since);
      // A layer that was sealed afterwards does not know its own digest.
      if (!identity->digest.empty()) compare("the root", root_of(*verdict_.summary), identity->digest);
      if (!identity->parent_digest.empty()) {
        compare("the parent's root", header().parent_root, identity->parent_digest);
      }
      if (header().overlay != identity->overlay) {
        complain(Outcome::BadManifest, "is of another kind of layer");
      }
    } else if (!header().layer_id.empty()) {
      complain(Outcome::BadManifest, fmt::format("is the manifest of layer {}, and {} has no identity",
                                                 header().layer_id, layer_.path()));
    }
  }

  void judge_kind_and_length() {
    const bool has_parent = index_ + 1 < chain_.layers().size();
    if (header().overlay != has_parent) {
      complain(Outcome::Mismatch,
               has_parent ? "is of a layer without a parent" : "is of a layer with a parent");
    }
    if (header().length != layer_.true_length() ||
        align_up(header().length, kSectorSize) != layer_.virtual_size()) {
      complain(Outcome::Mismatch,
               fmt::format("is of a disk of {} bytes, and {} has {} ({} with its last sector)",
                           header().length, layer_.path(), layer_.true_length(), layer_.virtual_size()));
    }
  }

  void judge_signature(const std::vector<TrustedKey>& trusted) {
    const std::optional<ManifestSignature>& signature = verdict_.summary->signature;
    if (signature && !is_own_signature(*signature, verdict_.summary->own_digest)) {
      return complain(Outcome::BadManifest, "its signature is not of the key that it names");
    }
    if (trusted.empty()) return;
    if (!signature) return complain(Outcome::BadManifest, "is not signed");
    if (!is_cryptographic(header().algorithm)) {
      return complain(Outcome::BadManifest,
                      fmt::format("has {} digests, which anybody can forge: its signature "
                                  "proves nothing",
                                  to_string(header().algorithm)));
    }
    for (const TrustedKey& key : trusted) {
      if (!key.accepts(*signature, verdict_.summary->own_digest)) continue;
      verdict_.trusted_key = key.path();
      return;
    }
    complain(Outcome::BadManifest, "none of the trusted keys made its signature");
  }

  void judge_root() {
    if (header().overlay && !header().parent_root.empty()) judge_parent_root();
    if (!verdict_.summary->root || verdict_.outcome != Outcome::Done) return;
    try {
      const std::unique_ptr<ChainDigests> digests = digests_from(chain_, index_);
      if (!digests->is_complete()) {
        return complain(
            Outcome::Incomplete,
            "its root cannot be followed to the bottom: a layer beneath has no manifest, or one of "
            "another algorithm; qchain verify --seal writes what is missing");
      }
      DiskDigest disk(header().algorithm);
      digests->add_to(disk, 0, header().blocks(), header().length);
      digests->finish();
      const Digest folded = disk.finish();
      verdict_.root_follows = folded == *verdict_.summary->root;
      if (!verdict_.root_follows) {
        complain(Outcome::Mismatch,
                 fmt::format("its root is {}, and the digests of the chain's manifests give {}",
                             root_of(*verdict_.summary), named(header().algorithm, folded)));
      }
    } catch (const Error& error) {
      take(error);
    }
  }

  void judge_parent_root() {
    if (!has_manifest(chain_, index_ + 1)) return;
    try {
      const std::string below = root_of(read_manifest(manifest_of(chain_, index_ + 1)));
      if (below == header().parent_root) return;
      complain(Outcome::Mismatch,
               fmt::format("was written on a disk with root {}, and {} says {}", header().parent_root,
                           manifest_of(chain_, index_ + 1), or_unknown(below)));
    } catch (const Error& error) {
      take(error);
    }
  }

  void take(const Error& error) {
    if (error.outcome() != Outcome::BadManifest && error.outcome() != Outcome::Mismatch) throw;
    verdict_.outcome = worse(verdict_.outcome, error.outcome());
    verdict_.problems.emplace_back(error.what());
  }

  const Chain& chain_;
  const std::size_t index_;
  const Layer& layer_;
  const std::string path_;
  ManifestVerdict verdict_;
};

// Whether nothing beneath layer `index` shows through in `range`.
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

bool is_interrupt(const Error& error) {
  return error.outcome() == Outcome::Interrupted || error.outcome() == Outcome::Terminated;
}

Outcome outcome_of(const Proof& proof) {
  Outcome outcome = proof.damaged_bytes != 0 ? Outcome::Mismatch : Outcome::Done;
  for (const Unreadable& unreadable : proof.unreadable) outcome = worse(outcome, unreadable.outcome);
  if (proof.stopped_at || proof.unknown_bytes != 0) outcome = worse(outcome, Outcome::Incomplete);
  return outcome;
}

}  // namespace

bool has_manifest(const Chain& chain, std::size_t index) {
  const std::string path = manifest_of(chain, index);
  if (access(path.c_str(), F_OK) != 0) return false;
  if (chain.layers()[index].raw() == nullptr) return true;
  // A file that is read as raw may be a qcow2 image all the same, and the manifest be that image's.
  try {
    return ManifestReader(path).header().layer_id.empty();
  } catch (const Error& error) {
    if (error.outcome() != Outcome::BadManifest) throw;
    return true;
  }
}

std::size_t manifests_from(const Chain& chain, std::size_t index) {
  std::size_t count = 0;
  while (index + count < chain.layers().size() && has_manifest(chain, index + count)) ++count;
  return count;
}

std::unique_ptr<ChainDigests> digests_from(const Chain& chain, std::size_t index) {
  std::vector<std::string> manifests;
  std::optional<Algorithm> algorithm;
  for (std::size_t i = index, end = index + manifests_from(chain, index); i < end; ++i) {
    const Algorithm here = ManifestReader(manifest_of(chain, i)).header().algorithm;
    if (algorithm && here != *algorithm) break;
    algorithm = here;
    manifests.push_back(manifest_of(chain, i));
  }
  if (manifests.empty()) return nullptr;
  return std::make_unique<ChainDigests>(manifests, index, index + manifests.size() == chain.layers().size());
}

ManifestVerdict judge_manifest(const Chain& chain, std::size_t index, const std::vector<TrustedKey>& trusted,
                               Depth depth) {
  return ManifestJudge(chain, index).judge(trusted, depth);
}

Cause cause_beneath(const Chain& chain, std::size_t index, const GuestRange& range,
                    const std::function<const Proof*(std::size_t)>& proof_of) {
  for (std::size_t beneath = index + 1; beneath < chain.layers().size(); ++beneath) {
    const Proof* const proof = proof_of(beneath);
    if (proof == nullptr) return Cause::Unknown;
    if (touches(*proof, range)) return Cause::Beneath;
    if (!proof->lists_all() || proof->stopped_at) return Cause::Unknown;
    if (hides(chain, beneath, range)) break;
  }
  return Cause::Missed;
}

Outcome LayerDrill::outcome() const {
  Outcome outcome = worse(manifest.outcome, failure.outcome);
  if (!manifest.exists || !manifest.summary || !manifest.summary->root) {
    outcome = worse(outcome, Outcome::Incomplete);
  }
  return worse(outcome, proof ? outcome_of(*proof) : Outcome::Incomplete);
}

std::vector<LayerDrill> drill(const Chain& chain, const DrillOptions& options) {
  std::vector<LayerDrill> layers(chain.layers().size());
  ProofOptions proof = options.proof;
  for (std::size_t i = layers.size(); i-- > 0;) {
    LayerDrill& layer = layers[i];
    layer.file = chain.layers()[i].path();
    // Roots follow from good manifests alone.
    const bool followed = std::ranges::all_of(
        std::span(layers).subspan(i + 1),
        [](const LayerDrill& beneath) { return !beneath.manifest.exists || beneath.manifest.belongs; });
    try {
      layer.manifest =
          judge_manifest(chain, i, options.trusted, followed ? Depth::Chain : Depth::ManifestAlone);
      if (!followed && layer.manifest.belongs) {
        layer.manifest.outcome = worse(layer.manifest.outcome, Outcome::Incomplete);
        layer.manifest.problems.push_back(
            fmt::format("{}: its root cannot be followed to the bottom: a manifest beneath is bad",
                        manifest_of(chain, i)));
      }
      const bool usable =
          layer.manifest.belongs && layer.manifest.summary->header.length <= chain.layers()[i].virtual_size();
      if (!options.content || !usable) continue;
      layer.proof = prove_layer(chain, i, proof);
      proof.max_listed -= std::min(proof.max_listed, layer.proof->damages.size());
      for (Damage& damage : layer.proof->damages) {
        if (damage.cause != Cause::Missed) continue;
        damage.cause = cause_beneath(chain, i, damage.range, [&](std::size_t beneath) {
          return layers[beneath].proof ? &*layers[beneath].proof : nullptr;
        });
      }
    } catch (const Error& error) {
      if (is_interrupt(error)) throw;
      layer.failure = {error.outcome(), error.what()};
    }
  }
  return layers;
}

}  // namespace qchain
