#include "verify/drill.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "verify/device_digest.h"

namespace qchain {

namespace {

std::string manifest_of(const Chain& chain, std::size_t index) {
  return qchain::manifest_of(chain.layers()[index]);
}

std::string or_unknown(const std::string& text) { return text.empty() ? "unknown" : text; }

std::string root_of(const ManifestSummary& summary) {
  return summary.root ? named(summary.header.algorithm, *summary.root) : std::string();
}

bool is_interrupt(const Error& error) {
  return error.outcome() == Outcome::Interrupted || error.outcome() == Outcome::Terminated;
}

bool has_link_problem(const Chain& chain, std::size_t index) {
  return std::ranges::any_of(chain.link_problems(),
                             [&](const Survey::Problem& problem) { return problem.layer == index; });
}

// The identity of the layer that lies beneath layer `index` today; empty: it has none.
std::string id_beneath(const Chain& chain, std::size_t index) {
  if (index + 1 >= chain.layers().size()) return {};
  const std::optional<Identity> identity = chain.layers()[index + 1].identity();
  return identity ? identity->id : std::string();
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
      if (is_interrupt(error)) throw;
      verdict_.outcome = error.outcome();
      verdict_.problems.emplace_back(error.what());
      return std::move(verdict_);
    }
    judge_identity();
    judge_signature(trusted);
    // What is said of the chain counts only from a manifest that belongs here.
    verdict_.belongs = verdict_.outcome == Outcome::Done;
    if (verdict_.belongs) judge_place();
    if (verdict_.outcome == Outcome::Done && !verdict_.misfit && depth == Depth::Chain) judge_root();
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
      compare("the checkpoint", header().checkpoint, identity->checkpoint);
      compare("what its changes count from", header().since, identity->since);
      if (!header().accepted.empty()) {
        compare("the recorded digest", header().accepted, identity->digest);
      } else if (!identity->digest.empty()) {  // a layer that was sealed afterwards does not know its own
        compare("the root", root_of(*verdict_.summary), identity->digest);
      }
      // Where another tool has put the layer elsewhere, that is held against the chain.
      if (header().is_resealed()) return;
      compare("the parent", header().parent_id, identity->parent_id);
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

  // The layer does not stand where the manifest has it.
  void complain_of_place(const std::string& what) {
    verdict_.misfit = true;
    complain(Outcome::Mismatch, what);
  }

  void judge_place() {
    const bool has_parent = index_ + 1 < chain_.layers().size();
    if (header().overlay != has_parent) {
      complain_of_place(has_parent ? "is of a layer without a parent" : "is of a layer with a parent");
    }
    if (header().is_resealed()) {
      const std::string beneath = id_beneath(chain_, index_);
      if (has_parent && header().parent_id != beneath) {
        complain_of_place(fmt::format("was sealed on layer {}, and its backing file is layer {}",
                                      or_unknown(header().parent_id), or_unknown(beneath)));
      }
    } else if (has_link_problem(chain_, index_)) {
      complain_of_place("was written with a layer on another parent than its backing file");
    }
    if (header().length != layer_.true_length() ||
        align_up(header().length, kSectorSize) != layer_.virtual_size()) {
      complain_of_place(fmt::format("is of a disk of {} bytes, and {} has {} ({} with its last sector)",
                                    header().length, layer_.path(), layer_.true_length(),
                                    layer_.virtual_size()));
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
      if (!digests || !digests->is_complete()) return judge_gaps();
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

  // Why the digests do not reach the bottom: a manifest beneath is bad, or there is none.
  void judge_gaps() {
    for (std::size_t i = index_ + 1; i < chain_.layers().size(); ++i) {
      if (!has_manifest(chain_, i)) continue;
      const ManifestVerdict beneath = ManifestJudge(chain_, i).judge({}, Depth::ManifestAlone);
      if (beneath.outcome == Outcome::Done) continue;
      return take(Error(beneath.outcome, beneath.problems.front()));
    }
    complain(Outcome::Incomplete,
             "its root cannot be followed to the bottom: a layer beneath has no manifest, or one of "
             "another algorithm; qchain verify --seal writes what is missing");
  }

  void judge_parent_root() {
    if (!has_manifest(chain_, index_ + 1)) return;
    try {
      const std::string below = root_of(read_manifest(manifest_of(chain_, index_ + 1)));
      if (below == header().parent_root) return;
      complain_of_place(fmt::format("was written on a disk with root {}, and {} says {}",
                                    header().parent_root, manifest_of(chain_, index_ + 1),
                                    or_unknown(below)));
    } catch (const Error& error) {
      take(error);
    }
  }

  // This manifest is none the worse for one beneath that cannot be read.
  void take(const Error& error) {
    if (is_interrupt(error)) throw;
    if (error.outcome() == Outcome::BadManifest || error.outcome() == Outcome::Mismatch) {
      verdict_.outcome = worse(verdict_.outcome, error.outcome());
      verdict_.problems.emplace_back(error.what());
      return;
    }
    complain(Outcome::Incomplete, fmt::format("its root cannot be followed to the bottom: a manifest beneath "
                                              "cannot be read: {}",
                                              error.what()));
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

// The path of a manifest whose digests tell what layer `index` holds; empty: there is none.
std::string usable_manifest(const Chain& chain, std::size_t index) {
  if (!has_manifest(chain, index)) return {};
  const std::string path = manifest_of(chain, index);
  try {
    const ManifestHeader header = ManifestReader(path).header();
    const bool has_parent = index + 1 < chain.layers().size();
    const bool same_parent = header.parent_id.empty() || header.parent_id == id_beneath(chain, index);
    const bool fits =
        header.overlay == has_parent && same_parent && header.length == chain.layers()[index].true_length();
    return fits ? path : std::string();
  } catch (const Error& error) {
    if (is_interrupt(error)) throw;
    return {};
  }
}

// The disk that layer `index` and those beneath it describe.
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

// Whether nothing is wrong but that the layer holds other blocks than its manifest has it: whole blocks are
// what was recorded.
bool is_about_structure(const Proof& proof) {
  return proof.lists_all() && std::ranges::all_of(proof.damages, [](const Damage& damage) {
           return damage.found == damage.stored || damage.stored == "not held";
         });
}

// Reads the whole disk at a layer that another tool has rewritten, and forgives its structure where the
// content is what was recorded. `rewritten_beneath`: a layer that it stands on was rewritten.
void compare_whole(const Chain& chain, std::size_t index, bool rewritten_beneath, const ProofOptions& options,
                   LayerDrill& layer) {
  ManifestVerdict& manifest = layer.manifest;
  const std::optional<Identity> identity = chain.layers()[index].identity();
  std::string recorded = identity ? identity->digest : std::string();
  if (manifest.belongs && manifest.summary->root) recorded = root_of(*manifest.summary);
  if (recorded.empty() || (manifest.exists && !manifest.belongs)) return;
  if (manifest.exists && manifest.summary->header.length != chain.layers()[index].true_length()) return;
  if (layer.proof && layer.proof->unreadable_bytes != 0) return;
  const bool damaged = layer.proof && layer.proof->damaged_bytes != 0;
  const bool rewritten = manifest.misfit || (!manifest.exists && has_link_problem(chain, index)) ||
                         (manifest.exists && rewritten_beneath) ||
                         (damaged && is_about_structure(*layer.proof));
  if (!rewritten) return;
  const Algorithm algorithm = algorithm_named(recorded.substr(0, recorded.find(':')));
  DiskAt disk(chain, index);
  const Digest found =
      digest_of(disk, chain.layers()[index].true_length(), {algorithm, options.workers, options.progress});
  if (named(algorithm, found) != recorded) return;
  layer.same_content = recorded;
  manifest.outcome = Outcome::Done;
  manifest.problems.clear();
  if (!layer.proof) return;
  layer.proof->damages.clear();
  layer.proof->damaged_bytes = 0;
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
  if (!manifest_exists(path)) return false;
  if (chain.layers()[index].raw() == nullptr) return true;
  // A file that is read as raw may be a qcow2 image all the same, and the manifest be that image's.
  try {
    return ManifestReader(path).header().layer_id.empty();
  } catch (const Error& error) {
    if (is_interrupt(error)) throw;
    return true;
  }
}

void require_resolved_links(const Chain& chain) {
  for (const Survey::Problem& problem : chain.link_problems()) {
    const ManifestVerdict verdict = judge_manifest(chain, problem.layer, {}, Depth::ManifestAlone);
    const bool resealed = verdict.belongs && !verdict.misfit && verdict.summary->header.is_resealed();
    if (resealed) continue;
    throw Error(
        problem.outcome,
        fmt::format("{}; qchain verify tells whether the content is what was recorded, and qchain verify "
                    "--seal makes it provable again where it is",
                    problem.message));
  }
}

std::size_t manifests_from(const Chain& chain, std::size_t index) {
  std::size_t count = 0;
  while (index + count < chain.layers().size() && has_manifest(chain, index + count)) ++count;
  return count;
}

std::unique_ptr<ChainDigests> digests_from(const Chain& chain, std::size_t index) {
  std::vector<std::string> manifests;
  for (std::size_t i = index; i < chain.layers().size(); ++i) manifests.push_back(usable_manifest(chain, i));
  const bool none = std::ranges::all_of(manifests, &std::string::empty);
  return none ? nullptr : std::make_unique<ChainDigests>(chain, index, manifests);
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
    const std::span<const LayerDrill> lower = std::span(layers).subspan(i + 1);
    const bool readable = std::ranges::all_of(
        lower, [](const LayerDrill& b) { return !b.manifest.exists || b.manifest.belongs; });
    const bool followed =
        readable && std::ranges::none_of(lower, [](const LayerDrill& b) { return b.manifest.misfit; });
    try {
      layer.manifest =
          judge_manifest(chain, i, options.trusted, followed ? Depth::Chain : Depth::ManifestAlone);
      if (!followed && layer.manifest.belongs) {
        layer.manifest.outcome = worse(layer.manifest.outcome, Outcome::Incomplete);
        layer.manifest.problems.push_back(
            fmt::format("{}: its root cannot be followed to the bottom: {}", manifest_of(chain, i),
                        readable ? "a layer beneath was rewritten since"
                                 : "a manifest beneath cannot be read, or is bad"));
      }
      const bool usable =
          layer.manifest.belongs && layer.manifest.summary->header.length <= chain.layers()[i].virtual_size();
      const bool all = options.content && proof.selection.is_everything() && !proof.deadline;
      if (!options.content) continue;
      if (usable) layer.proof = prove_layer(chain, i, proof);
      if (all) compare_whole(chain, i, readable && !followed, proof, layer);
      if (!layer.proof) continue;
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
