#pragma once

#include <memory>
#include <optional>
#include <string>

#include "extent/publication.h"
#include "verify/manifest_builder.h"
#include "verify/restore_points.h"
#include "verify/signature.h"

namespace qchain {

/// What the layer that stands on a chain can know of the digests beneath it.
struct ParentDigests {
  std::optional<Algorithm> algorithm;     ///< Of the parent's manifest; nullopt: there is none.
  std::string root;                       ///< "ALGORITHM:HEX"; empty: unknown.
  std::unique_ptr<ChainDigests> digests;  ///< nullptr: unknown.
  std::string unknown_because;            ///< In words, where the root is unknown.
};

/// Of layer `index` and those beneath it. Throws Error, with what to do, where the manifest of that layer is
/// damaged or another's, or its root does not follow from those beneath.
ParentDigests parent_digests(RestorePoints& points, std::size_t index);

/// A manifest in the making, under no name yet.
class LayerManifest {
 public:
  /// To be published as `path`, in place of what is there. `beneath` is of the layer's own algorithm, or
  /// unknown. Throws Error.
  LayerManifest(const std::string& path, const ManifestHeader& header, std::uint64_t parent_length,
                std::unique_ptr<ChainDigests> beneath, Warn warn = {});

  Algorithm algorithm() const noexcept { return algorithm_; }
  LayerObserver observer() { return builder_.observer(); }
  /// Ends it and makes it durable; nullptr: unsigned. Returns the root, or nullopt where it is unknown.
  std::optional<Digest> finish(const SigningKey* key);
  /// Gives it its name.
  void publish() { publication_.publish(); }

 private:
  Publication publication_;
  Algorithm algorithm_;
  ManifestBuilder builder_;
};

}  // namespace qchain
