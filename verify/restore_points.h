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

/// The result of checking a layer's manifest.
struct ManifestVerdict {
  bool exists = false;
  std::optional<ManifestSummary> summary;  ///< nullopt: missing or unreadable.
  bool belongs = false;  ///< It is valid, belongs to this layer, and is signed by a trusted key if required.
  /// The layer's place in the chain is not the one that the manifest records: its length, parent or kind
  /// differ, or the disk below does. Another tool has rewritten this layer, or one below.
  bool is_misplaced = false;
  bool root_follows = false;  ///< The root matches the digests in all manifests down to the bottom.
  std::string trusted_key;    ///< Path of the trusted key that verified its signature; empty: none.
  Outcome outcome = Outcome::Done;
  std::vector<std::string> problems;
};

/// The restore points of a chain: the disk at each layer, and its manifest. Each manifest is opened once,
/// when it is first needed, read to its end and checked; later reads use the same descriptor and fail if the
/// content has changed. Index 0 is the top. One thread at a time.
class RestorePoints {
 public:
  /// `trusted`: keys, one of which has to verify the signature of each manifest; empty: signatures are only
  /// checked against the keys that they name. The chain has to outlive this.
  explicit RestorePoints(const Chain& chain, std::vector<TrustedKey> trusted = {});

  const Chain& chain() const noexcept { return chain_; }

  /// Whether layer `index` has a manifest, valid or not.
  bool has_manifest(std::size_t index) { return load(index).verdict.exists; }
  /// The number of consecutive layers from `index` down that have a manifest.
  std::size_t manifests_from(std::size_t index);
  /// nullptr: missing or unreadable.
  std::shared_ptr<const Manifest> manifest(std::size_t index) { return load(index).manifest; }

  /// Whether the manifest of layer `index` is valid, matches the layer's identity and place in the chain, and
  /// is trusted. A manifest that was sealed again is compared with the current backing file instead of the
  /// recorded parent. Throws Error (Io) if layers cannot be read.
  const ManifestVerdict& verdict(std::size_t index) { return load(index).verdict; }
  /// Also whether its root matches the digests in the manifests below.
  ManifestVerdict verdict_with_root(std::size_t index);
  /// The root computed from the manifests of layer `index` and those below; nullopt if one is missing, or
  /// they have different algorithms.
  std::optional<Digest> folded_root(std::size_t index);
  /// Computes folded_root() of all layers in one pass, instead of one pass for each.
  void fold_all();

  /// The digests of the disk at layer `index`. A layer is a gap (see ChainDigests) if its manifest is missing
  /// or unreadable, has another algorithm than the topmost, or records another place in the chain. nullptr if
  /// all layers are gaps. Throws Error (Io).
  std::unique_ptr<ChainDigests> digests(std::size_t index);

  /// Throws the first link problem of the chain that is not resolved by a manifest that was sealed again. For
  /// operations that rely on the identity of layers, such as an increment or a verified restore.
  void require_resolved_links();

  /// From now on `manifest` is the manifest of layer `index`, published or not.
  void replace(std::size_t index, std::shared_ptr<const File> manifest);

 private:
  struct Point {
    std::shared_ptr<const File> replacement;  // of the file under the manifest's name
    bool is_loaded = false;
    std::shared_ptr<const Manifest> manifest;
    ManifestVerdict verdict;
    std::optional<Digest> folded;  // the root computed from all manifests from here down
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

/// The path of the manifest of a layer: next to the file itself, with symbolic links resolved.
std::string manifest_of(const Layer& layer);

}  // namespace qchain
