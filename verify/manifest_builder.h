#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "qcow2/layer_writer.h"
#include "verify/chain_digests.h"
#include "verify/manifest.h"

namespace qchain {

/// Makes a layer's manifest, and the root of the disk, while the layer is written or read. The root of an
/// overlay is folded from the parent's digests and the blocks that the layer holds: its parent's data is not
/// read.
class ManifestBuilder {
 public:
  /// `parent_length`: bytes of the parent's disk, for an overlay. `parent`: the digests of the chain below
  /// it; nullptr: unknown. Throws Error.
  ManifestBuilder(const File& file, const ManifestHeader& header, std::uint64_t parent_length,
                  std::unique_ptr<ChainDigests> parent);

  /// For write_layer(). The builder has to outlive it.
  LayerObserver observer();

  struct Finished {
    std::optional<Digest> root;  ///< nullopt: it cannot be known.
    Digest own_digest;           ///< Of the manifest.
  };
  /// Ends the manifest. Throws Error (BadManifest) where a parent's manifest turns out to be damaged.
  Finished finish();
  /// After finish().
  void sign(const ManifestSignature& signature) { writer_.sign(signature); }

 private:
  friend class BlockHasher;
  bool root_is_known() const { return !header_.overlay || parent_ != nullptr; }
  /// The block in which the disk or the parent ends, where they end in different places: it is of another
  /// length now, so that the parent's digest of it says nothing.
  GuestRange cut_block() const;

  ManifestHeader header_;
  std::uint64_t parent_length_;
  std::unique_ptr<ChainDigests> parent_;
  ManifestWriter writer_;
  DiskDigest disk_;
};

}  // namespace qchain
