// Chains with manifests, written as `qchain pull` writes them, and their expected content.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qcow2/chain.h"
#include "tests/random.h"
#include "tests/support.h"
#include "verify/chain_proof.h"
#include "verify/layer_manifest.h"
#include "verify/seal.h"

namespace qchain::tests {

/// The content digest, block by block.
Digest blkhash_of(Algorithm algorithm, std::span<const std::byte> bytes);

/// The expected record of a block in a manifest.
struct BlockLaw {
  Held held = Held::None;
  std::optional<Digest> whole;  ///< nullopt: not recorded, or zeros.
  std::optional<Digest> part;
};

/// One layer of a ProvenChain.
struct ProvenLayer {
  std::string name;  ///< In its folder.
  Position position = Position::Bottom;
  LayerOptions options;
  Algorithm algorithm = Algorithm::Sha256;
  Disk disk;  ///< The disk at that time, and the extents that the source reported.
  std::uint64_t parent_length = 0;
  std::optional<Digest> root;  ///< The root in the manifest.

  const Bytes& content() const { return disk.bytes; }
};

/// Builds a chain from the bottom up; each layer has an identity and a manifest.
class ProvenChain {
 public:
  ProvenChain(Random& random, const Folder& folder) : random_(random), folder_(folder) {}

  /// A disk of `size` bytes on top of the chain: what it inherits is the content below, or zeros. Some of the
  /// rest equals the content below, and some is zeros.
  Disk next_disk(std::uint64_t size, std::uint64_t grain);
  /// Writes the next layer. `key`: nullptr for an unsigned one.
  void add(Disk disk, LayerOptions options, Algorithm algorithm, const SigningKey* key = nullptr);
  /// Random options and a random disk of up to `most` bytes.
  void add_any(Algorithm algorithm, std::uint64_t most);

  /// From the bottom.
  const std::vector<ProvenLayer>& layers() const { return layers_; }
  /// As in Chain: 0 is the top.
  const ProvenLayer& from_top(std::size_t index) const { return layers_[layers_.size() - 1 - index]; }
  std::string path(std::size_t from_top_index) const { return folder_ / from_top(from_top_index).name; }
  std::string manifest(std::size_t from_top_index) const { return manifest_path(path(from_top_index)); }
  /// The chain, or what it was before its last layers were written.
  std::unique_ptr<Chain> open(std::size_t from_top_index = 0) const;
  /// The random choices, for messages.
  std::string description() const;

  /// The expected records of each block of the disk in the manifest of a layer.
  std::vector<BlockLaw> law(std::size_t from_top_index) const;

 private:
  Random& random_;
  const Folder& folder_;
  std::vector<ProvenLayer> layers_;
};

/// Every layer of an open chain, compared with its manifest.
inline std::vector<LayerProof> prove(const Chain& chain, const ProofOptions& options = {},
                                     std::vector<TrustedKey> trusted = {}) {
  RestorePoints points(chain, std::move(trusted));
  return prove_chain(points, options);
}
inline Proof prove_one(const Chain& chain, std::size_t layer, const ProofOptions& options = {}) {
  RestorePoints points(chain);
  return prove_layer(points, layer, options);
}
/// The digests of the disk at layer `index`, by the manifests.
inline std::unique_ptr<ChainDigests> digests_of(const Chain& chain, std::size_t index = 0) {
  return RestorePoints(chain).digests(index);
}
inline Sealed seal(const Chain& chain, std::size_t layer, const SealOptions& options = {}) {
  RestorePoints points(chain);
  ChainSeal chain_seal(points, options);
  const Sealed sealed = chain_seal.add(layer);
  chain_seal.publish();
  return sealed;
}

/// Any options that layers can be written with.
LayerOptions any_layer_options(Random& random);

}  // namespace qchain::tests
