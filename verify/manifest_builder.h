#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "qcow2/layer_observer.h"
#include "verify/chain_digests.h"
#include "verify/manifest.h"

namespace qchain {

/// Makes a layer's manifest, and the root of the disk, while the layer is written. The root of an overlay is
/// folded from the parent's digests and the blocks that the layer holds: its parent's data is not read.
class ManifestBuilder : public LayerObserver {
 public:
  /// `parent`: the digests of what an overlay stands on; nullptr where they are not known.
  ManifestBuilder(const File& file, const ManifestHeader& header, std::unique_ptr<ChainDigests> parent);

  std::uint64_t block_size() const override { return kDigestBlock; }
  std::unique_ptr<PieceObserver> for_worker() override;

  /// Ends the manifest; returns the root, or nullopt where it cannot be known. Throws Error (BadManifest)
  /// where a parent's manifest turns out to be damaged.
  std::optional<Digest> finish();

 private:
  friend class BlockHasher;
  bool root_is_known() const { return !header_.overlay || parent_ != nullptr; }

  ManifestHeader header_;
  std::unique_ptr<ChainDigests> parent_;
  ManifestWriter writer_;
  DiskDigest disk_;
};

}  // namespace qchain
