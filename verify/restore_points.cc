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

// The id of the layer that is currently below layer `index`; empty: it has none.
std::string id_below(const Chain& chain, std::size_t index) {
  if (index + 1 >= chain.layers().size()) return {};
  const std::optional<Identity> identity = chain.layers()[index + 1].identity();
  return identity ? identity->id : std::string();
}

bool has_parent(const Chain& chain, std::size_t index) { return index + 1 < chain.layers().size(); }

// Adds the problems of one manifest to its verdict.
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
    // The place in the chain is checked only for a manifest that belongs to this layer.
    verdict_.belongs = verdict_.outcome == Outcome::Done;
    if (verdict_.belongs) check_place();
  }

  // `below`: the verdict on the manifest of the layer below; that manifest exists.
  void check_parent_root(const ManifestVerdict& below) {
    if (!below.summary) return take(Error(below.outcome, below.problems.front()));
    const std::optional<ContentDigest> root = below.summary->disk_digest();
    if (root == header().parent_root) return;
    add_misplaced(fmt::format("records {} as the root of its parent, but {} has {}",
                              text_of(header().parent_root), manifest_of(chain_.layers()[index_ + 1]),
                              or_unknown(text_of(root))));
  }

  void check_root(const Digest& folded) {
    verdict_.root_follows = folded == *verdict_.summary->root;
    if (verdict_.root_follows) return;
    add(Outcome::Mismatch, fmt::format("its root is {}, but the digests in the chain's manifests give {}",
                                       text_of(verdict_.summary->disk_digest()),
                                       ContentDigest{header().algorithm, folded}.text()));
  }

  // An I/O error of a manifest below makes the check of this one incomplete, not bad.
  void take(const Error& error) {
    if (is_cancelled(error)) throw error;
    if (error.outcome() == Outcome::BadManifest || error.outcome() == Outcome::Mismatch) {
      verdict_.outcome = worse(verdict_.outcome, error.outcome());
      verdict_.problems.emplace_back(error.what());
      return;
    }
    add(Outcome::Incomplete, fmt::format("its root cannot be checked against the layers below: a manifest "
                                         "cannot be read: {}",
                                         error.what()));
  }

  void add(Outcome outcome, const std::string& what) {
    verdict_.outcome = worse(verdict_.outcome, outcome);
    verdict_.problems.push_back(fmt::format("{}: {}", path_, what));
  }

 private:
  const ManifestHeader& header() const { return verdict_.summary->header; }

  // Fields that are in both the layer's identity and its manifest have to be equal.
  void check_identity() {
    const std::optional<Identity> identity = layer_.identity();
    const auto compare = [&](const char* what, const std::string& in_manifest, const std::string& in_layer) {
      if (in_manifest == in_layer) return;
      add(Outcome::BadManifest,
          fmt::format("{} is {}, but {} has {}; put back the manifest that was written with it", what,
                      or_unknown(in_manifest), layer_.path(), or_unknown(in_layer)));
    };
    if (identity) {
      compare("its layer id", header().layer_id, identity->id);
      compare("its checkpoint", header().checkpoint, identity->checkpoint);
      compare("the checkpoint that its changes start at", header().since, identity->since);
      if (header().accepted) {
        compare("the recorded digest", text_of(header().accepted), identity->digest);
      } else if (!identity->digest.empty()) {  // a layer that was sealed later does not record its own
        compare("its root", text_of(verdict_.summary->disk_digest()), identity->digest);
      }
      // If another tool has changed the backing file, check_place() compares with the chain instead.
      if (header().is_resealed) return;
      compare("its parent's layer id", header().parent_id, identity->parent_id);
      if (!identity->parent_digest.empty()) {
        compare("its parent's root", text_of(header().parent_root), identity->parent_digest);
      }
      if (header().overlay != identity->overlay) {
        add(Outcome::BadManifest, header().overlay ? "is for an overlay, but its layer is a full image"
                                                   : "is for a full image, but its layer is an overlay");
      }
    } else if (!header().layer_id.empty()) {
      add(Outcome::BadManifest,
          fmt::format("belongs to layer {}, but {} has no identity", header().layer_id, layer_.path()));
    }
  }

  // The layer's place in the chain is not the one that the manifest records.
  void add_misplaced(const std::string& what) {
    verdict_.is_misplaced = true;
    add(Outcome::Mismatch, what);
  }

  void check_place() {
    const bool overlay = has_parent(chain_, index_);
    if (header().overlay != overlay) {
      add_misplaced(overlay ? "is for a layer without a parent" : "is for a layer with a parent");
    }
    if (header().is_resealed) {
      const std::string below = id_below(chain_, index_);
      if (overlay && header().parent_id != below) {
        add_misplaced(
            fmt::format("was sealed for a layer with the parent {}, but the backing file is layer {}",
                        or_unknown(header().parent_id), or_unknown(below)));
      }
    } else if (chain_.has_link_problem(index_)) {
      add_misplaced("was written for a layer with another parent than its backing file");
    }
    if (header().length != layer_.true_length() ||
        align_up(header().length, kSectorSize) != layer_.virtual_size()) {
      add_misplaced(fmt::format("is for a disk of {} bytes, but {} has {} ({} in whole sectors)",
                                header().length, layer_.path(), layer_.true_length(), layer_.virtual_size()));
    }
  }

  void check_signature(const std::vector<TrustedKey>& trusted) {
    const std::optional<ManifestSignature>& signature = verdict_.summary->signature;
    if (signature && !is_own_signature(*signature, verdict_.summary->own_digest)) {
      return add(Outcome::BadManifest, "its signature was not made with the key that it names");
    }
    if (trusted.empty()) return;
    if (!signature) return add(Outcome::BadManifest, "is not signed");
    if (!is_cryptographic(header().algorithm)) {
      return add(Outcome::BadManifest, fmt::format("has {} digests, which do not detect tampering: its "
                                                   "signature proves nothing",
                                                   to_string(header().algorithm)));
    }
    for (const TrustedKey& key : trusted) {
      if (!key.accepts(*signature, verdict_.summary->own_digest)) continue;
      verdict_.trusted_key = key.path();
      return;
    }
    add(Outcome::BadManifest, "its signature was not made with any of the trusted keys");
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
  std::shared_ptr<const File> file = point.replacement;
  verdict.exists = file != nullptr || manifest_exists(path);
  try {
    if (verdict.exists) {
      if (!file) file = std::make_shared<const File>(File::open_to_read(path));
      // A qcow2 image may be used as a raw file; its manifest is then not for the raw file.
      verdict.exists = layer.raw() == nullptr || ManifestReader(file).header().layer_id.empty();
      if (verdict.exists) point.manifest = std::make_shared<const Manifest>(std::move(file));
    }
    if (point.manifest) {
      verdict.summary = point.manifest->summary();
      check.check(trusted_);
    } else if (!trusted_.empty()) {
      check.add(Outcome::BadManifest, "missing, so there is no signature");
    }
  } catch (const Error& error) {
    if (is_cancelled(error)) throw;
    verdict.outcome = error.outcome();
    verdict.problems.emplace_back(error.what());
  }
  point.is_loaded = true;
  return point;
}

void RestorePoints::replace(std::size_t index, std::shared_ptr<const File> manifest) {
  points_[index] = {};
  points_[index].replacement = std::move(manifest);
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
    if (header.overlay && header.parent_root && has_manifest(index + 1)) {
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

// Why the root cannot be computed: a manifest below is bad or missing.
void RestorePoints::explain_gap(std::size_t index, ManifestVerdict& verdict) {
  ManifestCheck check(chain_, index, points_[index].manifest->path(), verdict);
  for (std::size_t i = index + 1; i < points_.size(); ++i) {
    const ManifestVerdict& below = load(i).verdict;
    if (below.exists && below.outcome != Outcome::Done) {
      return check.take(Error(below.outcome, below.problems.front()));
    }
  }
  check.add(Outcome::Incomplete,
            "its root cannot be checked against the layers below: one has no manifest, or one with "
            "another algorithm; seal the chain to write what is missing");
}

// Whether a manifest describes the layer as it is in this chain.
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

// The number of layers from the bottom, up to and including `first`, whose digests can be used together.
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
    if (is_cancelled(error)) throw;  // else verdict_with_root() reports the layers concerned
  }
}

void RestorePoints::require_resolved_links() {
  for (const Survey::Problem& problem : chain_.link_problems()) {
    const ManifestVerdict& found = verdict(problem.layer);
    if (found.belongs && !found.is_misplaced && found.summary->header.is_resealed) continue;
    throw Error(problem.outcome, problem.message, Remedy::VerifyAndSeal);
  }
}

}  // namespace qchain
