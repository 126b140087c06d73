#include "verify/restore_points.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "extent/cancellation.h"
#include "verify/root_fold.h"

namespace qchain {

namespace {

std::string or_unknown(const std::string& text) { return text.empty() ? "unknown" : text; }

// The identity of the layer that is below layer `index` today; empty: it has none.
std::string id_below(const Chain& chain, std::size_t index) {
  if (index + 1 >= chain.layers().size()) return {};
  const std::optional<Identity> identity = chain.layers()[index + 1].identity();
  return identity ? identity->id : std::string();
}

bool has_parent(const Chain& chain, std::size_t index) { return index + 1 < chain.layers().size(); }

// Adds what is wrong with one manifest to its verdict, a line each.
class ManifestCheck {
 public:
  ManifestCheck(const Chain& chain, std::size_t index, std::string path, ManifestVerdict& verdict)
      : chain_(chain),
        index_(index),
        layer_(chain.layers()[index]),
        path_(std::move(path)),
        verdict_(verdict) {}

  void check(const std::vector<TrustedKey>& trusted) {
    check_identity();
    check_signature(trusted);
    // What is said of the chain counts only from a manifest that belongs here.
    verdict_.belongs = verdict_.outcome == Outcome::Done;
    if (verdict_.belongs) check_place();
  }

  // `below`: the verdict on the manifest of the layer below, which exists.
  void check_parent_root(const ManifestVerdict& below) {
    if (!below.summary) return take(Error(below.outcome, below.problems.front()));
    const std::string root = below.summary->named_root();
    if (root == header().parent_root) return;
    add_misplaced(fmt::format("was written on a disk with root {}, and {} says {}", header().parent_root,
                              manifest_of(chain_.layers()[index_ + 1]), or_unknown(root)));
  }

  void check_root(const Digest& folded) {
    verdict_.root_follows = folded == *verdict_.summary->root;
    if (verdict_.root_follows) return;
    add(Outcome::Mismatch, fmt::format("its root is {}, and the digests of the chain's manifests give {}",
                                       verdict_.summary->named_root(), named(header().algorithm, folded)));
  }

  // This manifest is none the worse for one below that cannot be read.
  void take(const Error& error) {
    if (is_cancelled(error)) throw error;
    if (error.outcome() == Outcome::BadManifest || error.outcome() == Outcome::Mismatch) {
      verdict_.outcome = worse(verdict_.outcome, error.outcome());
      verdict_.problems.emplace_back(error.what());
      return;
    }
    add(Outcome::Incomplete, fmt::format("its root cannot be followed to the bottom: a manifest below cannot be "
                                         "read: {}",
                                         error.what()));
  }

  void add(Outcome outcome, const std::string& what) {
    verdict_.outcome = worse(verdict_.outcome, outcome);
    verdict_.problems.push_back(fmt::format("{}: {}", path_, what));
  }

 private:
  const ManifestHeader& header() const { return verdict_.summary->header; }

  // What the layer and its manifest both say has to be the same.
  void check_identity() {
    const std::optional<Identity> identity = layer_.identity();
    const auto compare = [&](const char* what, const std::string& in_manifest, const std::string& in_layer) {
      if (in_manifest == in_layer) return;
      add(
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
        compare("the root", verdict_.summary->named_root(), identity->digest);
      }
      // Where another tool has changed the layer's backing file, that is checked against the chain.
      if (header().is_resealed()) return;
      compare("the parent", header().parent_id, identity->parent_id);
      if (!identity->parent_digest.empty()) {
        compare("the parent's root", header().parent_root, identity->parent_digest);
      }
      if (header().overlay != identity->overlay) {
        add(Outcome::BadManifest, "is of another kind of layer");
      }
    } else if (!header().layer_id.empty()) {
      add(Outcome::BadManifest, fmt::format("is the manifest of layer {}, and {} has no identity",
                                                 header().layer_id, layer_.path()));
    }
  }

  // The layer's place is not the one that the manifest records.
  void add_misplaced(const std::string& what) {
    verdict_.is_misplaced = true;
    add(Outcome::Mismatch, what);
  }

  void check_place() {
    const bool overlay = has_parent(chain_, index_);
    if (header().overlay != overlay) {
      add_misplaced(overlay ? "is of a layer without a parent" : "is of a layer with a parent");
    }
    if (header().is_resealed()) {
      const std::string below = id_below(chain_, index_);
      if (overlay && header().parent_id != below) {
        add_misplaced(fmt::format("was sealed on layer {}, and its backing file is layer {}",
                                      or_unknown(header().parent_id), or_unknown(below)));
      }
    } else if (chain_.has_link_problem(index_)) {
      add_misplaced("was written with a layer on another parent than its backing file");
    }
    if (header().length != layer_.true_length() ||
        align_up(header().length, kSectorSize) != layer_.virtual_size()) {
      add_misplaced(fmt::format("is of a disk of {} bytes, and {} has {} ({} with its last sector)",
                                    header().length, layer_.path(), layer_.true_length(),
                                    layer_.virtual_size()));
    }
  }

  void check_signature(const std::vector<TrustedKey>& trusted) {
    const std::optional<ManifestSignature>& signature = verdict_.summary->signature;
    if (signature && !is_own_signature(*signature, verdict_.summary->own_digest)) {
      return add(Outcome::BadManifest, "its signature is not of the key that it names");
    }
    if (trusted.empty()) return;
    if (!signature) return add(Outcome::BadManifest, "is not signed");
    if (!is_cryptographic(header().algorithm)) {
      return add(Outcome::BadManifest,
                      fmt::format("has {} digests, which anybody can forge: its signature "
                                  "proves nothing",
                                  to_string(header().algorithm)));
    }
    for (const TrustedKey& key : trusted) {
      if (!key.accepts(*signature, verdict_.summary->own_digest)) continue;
      verdict_.trusted_key = key.path();
      return;
    }
    add(Outcome::BadManifest, "none of the trusted keys made its signature");
  }

  const Chain& chain_;
  const std::size_t index_;
  const Layer& layer_;
  const std::string path_;
  ManifestVerdict& verdict_;
};

}  // namespace

std::string manifest_of(const Layer& layer) {
  std::error_code error;
  const std::filesystem::path real = std::filesystem::canonical(layer.path(), error);
  const std::optional<Identity> identity = layer.identity();
  return find_manifest(error ? layer.path() : real.string(), identity ? identity->id : std::string());
}

RestorePoints::RestorePoints(const Chain& chain, std::vector<TrustedKey> trusted)
    : chain_(chain), trusted_(std::move(trusted)), points_(chain.layers().size()) {}

const RestorePoints::Point& RestorePoints::load(std::size_t index) {
  Point& point = points_[index];
  if (point.is_loaded) return point;
  const Layer& layer = chain_.layers()[index];
  const std::string path = manifest_of(layer);
  ManifestVerdict& verdict = point.verdict;
  ManifestCheck check(chain_, index, path, verdict);
  verdict.exists = manifest_exists(path);
  try {
    if (verdict.exists) {
      auto file = std::make_shared<const File>(File::open_to_read(path));
      // A file that is read as raw may be a qcow2 image all the same, and the manifest be that image's.
      verdict.exists = layer.raw() == nullptr || ManifestReader(file).header().layer_id.empty();
      if (verdict.exists) point.manifest = std::make_shared<const Manifest>(std::move(file));
    }
    if (point.manifest) {
      verdict.summary = point.manifest->summary();
      check.check(trusted_);
    } else if (!trusted_.empty()) {
      check.add(Outcome::BadManifest, "is not there, so nothing is signed");
    }
  } catch (const Error& error) {
    if (is_cancelled(error)) throw;
    verdict.outcome = error.outcome();
    verdict.problems.emplace_back(error.what());
  }
  point.is_loaded = true;
  return point;
}

void RestorePoints::reload(std::size_t index) {
  points_[index] = {};
  for (std::size_t above = 0; above < index; ++above) points_[above].folded.reset();
}

std::size_t RestorePoints::manifests_from(std::size_t index) {
  std::size_t count = 0;
  while (index + count < points_.size() && has_manifest(index + count)) ++count;
  return count;
}

ManifestVerdict RestorePoints::verdict_with_root(std::size_t index) {
  ManifestVerdict verdict = load(index).verdict;
  if (!verdict.summary || verdict.outcome != Outcome::Done || verdict.is_misplaced) return verdict;
  const ManifestHeader& header = verdict.summary->header;
  ManifestCheck check(chain_, index, points_[index].manifest->path(), verdict);
  try {
    if (header.overlay && !header.parent_root.empty() && has_manifest(index + 1)) {
      check.check_parent_root(load(index + 1).verdict);
    }
    if (!verdict.summary->root || verdict.outcome != Outcome::Done) return verdict;
    if (const std::optional<Digest> folded = folded_root(index)) {
      check.check_root(*folded);
    } else {
      explain_gap(index, verdict);
    }
  } catch (const Error& error) {
    check.take(error);
  }
  return verdict;
}

// Why the digests do not reach the bottom: a manifest below is bad, or there is none.
void RestorePoints::explain_gap(std::size_t index, ManifestVerdict& verdict) {
  ManifestCheck check(chain_, index, points_[index].manifest->path(), verdict);
  for (std::size_t i = index + 1; i < points_.size(); ++i) {
    const ManifestVerdict& below = load(i).verdict;
    if (below.exists && below.outcome != Outcome::Done) {
      return check.take(Error(below.outcome, below.problems.front()));
    }
  }
  check.add(Outcome::Incomplete,
            "its root cannot be followed to the bottom: a layer below has no manifest, or one of another "
            "algorithm; qchain verify --seal writes what is missing");
}

// Whether the digests of a manifest are of what the layer is here.
bool RestorePoints::is_usable(std::size_t index) {
  const std::shared_ptr<const Manifest> manifest = load(index).manifest;
  if (!manifest) return false;
  const ManifestHeader& header = manifest->header();
  const bool same_parent = header.parent_id.empty() || header.parent_id == id_below(chain_, index);
  return header.overlay == has_parent(chain_, index) && same_parent &&
         header.length == chain_.layers()[index].true_length();
}

std::unique_ptr<ChainDigests> RestorePoints::digests(std::size_t index) {
  std::vector<std::shared_ptr<const Manifest>> manifests;
  for (std::size_t i = index; i < points_.size(); ++i) {
    manifests.push_back(is_usable(i) ? points_[i].manifest : nullptr);
  }
  const bool none = std::ranges::none_of(manifests, [](const auto& manifest) { return manifest != nullptr; });
  return none ? nullptr : std::make_unique<ChainDigests>(chain_, index, manifests);
}

// Layers from the bottom up to and with `first` whose digests are usable together: how many.
std::size_t RestorePoints::usable_from_bottom(std::size_t first) {
  std::size_t count = 0;
  for (std::size_t i = points_.size(); i-- > first; ++count) {
    if (!is_usable(i)) break;
    if (points_[i].manifest->header().algorithm != points_.back().manifest->header().algorithm) break;
  }
  return count;
}

void RestorePoints::fold(std::size_t first, std::size_t wanted) {
  std::vector<std::shared_ptr<const Manifest>> manifests;
  for (std::size_t i = first; i < points_.size(); ++i) manifests.push_back(points_[i].manifest);
  const std::vector<Digest> roots = fold_roots(manifests, wanted);
  for (std::size_t i = 0; i < roots.size(); ++i) points_[first + i].folded = roots[i];
}

std::optional<Digest> RestorePoints::folded_root(std::size_t index) {
  if (!points_[index].folded) {
    if (usable_from_bottom(index) != points_.size() - index) return std::nullopt;
    fold(index, 1);
  }
  return points_[index].folded;
}

void RestorePoints::fold_all() {
  const std::size_t count = usable_from_bottom(0);
  try {
    fold(points_.size() - count, count);
  } catch (const Error& error) {
    if (is_cancelled(error)) throw;  // else verdict_with_root() says which layers it concerns
  }
}

void RestorePoints::require_resolved_links() {
  for (const Survey::Problem& problem : chain_.link_problems()) {
    const ManifestVerdict& found = verdict(problem.layer);
    if (found.belongs && !found.is_misplaced && found.summary->header.is_resealed()) continue;
    throw Error(
        problem.outcome,
        fmt::format("{}; qchain verify tells whether the content is what was recorded, and qchain verify "
                    "--seal makes it provable again where it is",
                    problem.message));
  }
}

}  // namespace qchain
