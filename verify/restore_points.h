#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "qcow2/chain.h"
#include "verify/chain_digests.h"
#include "verify/manifest.h"
#include "verify/signature.h"

namespace qchain {

/// What the check of a layer's manifest found.
struct ManifestVerdict {
  bool exists = false;
  std::optional<ManifestSummary> summary;  ///< nullopt: there is none, or it cannot be read.
  bool belongs = false;  ///< It was read to its end, is this layer's, and is trusted where that was asked.
  /// The layer's place is not the one that the manifest records: length, parent or kind differ, or the disk
  /// below is another one. Another tool has rewritten this layer, or one below.
  bool is_misplaced = false;
  bool root_follows = false;  ///< From the digests of all manifests down to the bottom.
  std::string trusted_key;    ///< Path of the key that accepts its signature; empty: none was asked.
  Outcome outcome = Outcome::Done;
  std::vector<std::string> problems;
};

/// The restore points of a chain: the disk at each layer, with the manifests that prove it. Each manifest is
/// opened once, when it is first needed, read to its end and checked; later reads use the same descriptor and
/// have to find the same bytes. Index 0 is the top. For one thread at a time.
class RestorePoints {
 public:
  /// `trusted`: keys, one of which has to accept the signature of every manifest; none: signatures are only
  /// checked against the keys that they name. The chain has to outlive this.
  explicit RestorePoints(const Chain& chain, std::vector<TrustedKey> trusted = {});

  const Chain& chain() const noexcept { return chain_; }

  /// Whether there is a file under the name of the manifest of layer `index`.
  bool has_manifest(std::size_t index) { return load(index).verdict.exists; }
  /// How many layers from `index` down, without a gap, have a manifest.
  std::size_t manifests_from(std::size_t index);
  /// nullptr: there is none, or it cannot be read.
  std::shared_ptr<const Manifest> manifest(std::size_t index) { return load(index).manifest; }

  /// Whether the manifest of layer `index` is sound, belongs to the layer as its identity and its place in the
  /// chain have it, and is trusted. A manifest that was sealed again is compared with the layer that is below
  /// today instead of the one that the identity records. Throws Error (Io) where layers cannot be read.
  const ManifestVerdict& verdict(std::size_t index) { return load(index).verdict; }
  /// Also whether its root follows from the digests of the manifests below.
  ManifestVerdict verdict_with_root(std::size_t index);
  /// The root that follows from the manifests of layer `index` and those below; nullopt where they do not
  /// reach the bottom, or are of different algorithms.
  std::optional<Digest> folded_root(std::size_t index);
  /// Computes folded_root() of all layers, in one pass; else each takes a pass.
  void fold_all();

  /// The digests of the disk at layer `index`. A layer without a manifest is a gap, as is one whose manifest
  /// cannot be read, has another algorithm than the topmost, or is of a layer that has another place; see
  /// ChainDigests. nullptr where nothing is left. Throws Error (Io).
  std::unique_ptr<ChainDigests> digests(std::size_t index);

  /// Throws the first of the chain's link problems that no manifest that was sealed again resolves: for what
  /// relies on the identity of layers, such as an increment on this chain, or a verified restore.
  void require_resolved_links();

  /// Looks at the manifest of layer `index` again when it is next needed: it was written anew.
  void reload(std::size_t index);

 private:
  struct Point {
    bool is_loaded = false;
    std::shared_ptr<const Manifest> manifest;
    ManifestVerdict verdict;
    std::optional<Digest> folded;  // the root that follows from all manifests from here down
  };

  const Point& load(std::size_t index);
  void explain_gap(std::size_t index, ManifestVerdict& verdict);
  bool is_usable(std::size_t index);
  std::size_t usable_from_bottom(std::size_t first);
  void fold(std::size_t first, std::size_t wanted);

  const Chain& chain_;
  std::vector<TrustedKey> trusted_;
  std::vector<Point> points_;
};

/// Where the manifest of a layer lies: beside the file itself, also where a link led to it.
std::string manifest_of(const Layer& layer);

}  // namespace qchain
