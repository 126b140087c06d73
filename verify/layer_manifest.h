#pragma once

#include <memory>
#include <optional>
#include <string>

#include "extent/publication.h"
#include "verify/manifest_builder.h"
#include "verify/restore_points.h"
#include "verify/signature.h"

namespace qchain {

/// The digests of the chain that backs a new layer, as far as they are known.
struct ParentDigests {
  std::optional<Algorithm> algorithm;  ///< Of the parent's manifest; nullopt: it has none.
  std::optional<ContentDigest> root;
  std::unique_ptr<ChainDigests> digests;  ///< nullptr: unknown.
  std::string unknown_because;            ///< Why the root is unknown; empty: it is known.
};

/// The digests of layer `index` and those below it. Throws Error, with a remedy, if the manifest of that
/// layer is damaged or belongs to another layer, or its root does not match the manifests below.
ParentDigests parent_digests(RestorePoints& points, std::size_t index);

/// What the manifest of a layer with this identity says of it; algorithm and parent's root are filled in.
ManifestHeader header_for(const Identity& identity, Origin origin);
/// Gives the header the time and the disk of a layer with this identity.
void name_point(ManifestHeader& header, const Identity& identity);

/// A manifest that is being written and not yet published.
class LayerManifest {
 public:
  /// Will replace `path`. `parent`: the digests of the backing chain, with the algorithm of `header`;
  /// nullptr: unknown. Throws Error.
  LayerManifest(const std::string& path, const ManifestHeader& header, std::uint64_t parent_length,
                std::unique_ptr<ChainDigests> parent, Warn warn = {});

  Algorithm algorithm() const noexcept { return algorithm_; }
  LayerObserver observer() { return builder_.observer(); }
  /// Writes the end and makes the file durable. `key`: nullptr: do not sign. Returns the root; nullopt:
  /// unknown.
  std::optional<Digest> finish(const SigningKey* key);
  /// Publishes it.
  void publish() { publication_->publish(); }
  /// Lets go of it after finish(), to be published later.
  std::unique_ptr<Publication> release() { return std::move(publication_); }

 private:
  std::unique_ptr<Publication> publication_;
  Algorithm algorithm_;
  ManifestBuilder builder_;
};

}  // namespace qchain
