// Verifies a chain from its own manifests, as in a restore drill.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "qcow2/chain.h"
#include "verify/proof.h"
#include "verify/restore_points.h"

namespace qchain {

/// Why a range does not match the manifest of layer `index` although the bytes that this layer holds do:
/// Below, Missed or Unknown. `proof_of` returns the result for a layer below; nullptr: it was not checked.
/// Throws Error if tables cannot be read.
Cause cause_from_lower_layers(const Chain& chain, std::size_t index, const GuestRange& range,
                              const std::function<const Proof*(std::size_t)>& proof_of);

/// The result for one layer, which is a restore point.
struct LayerProof {
  std::string file;
  ManifestVerdict manifest;
  std::optional<Proof> proof;  ///< nullopt: its content was not checked.
  /// If another tool has rewritten this layer, or one below, so that blocks cannot be compared, but the whole
  /// disk was read and has the recorded digest: that digest. Else empty.
  std::optional<ContentDigest> same_content;
  /// Why the layer could not be checked; Done: it could.
  struct Failure {
    Outcome outcome = Outcome::Done;
    std::string message;
  } failure;
  Outcome outcome() const;
};

/// Checks the manifest of every layer, with its root; reads nothing else. From the top.
std::vector<LayerProof> check_manifests(RestorePoints& points);

/// The same, and compares the content of every layer with its manifest. Works from the bottom up, so that
/// damage in a lower layer is attributed to it.
std::vector<LayerProof> prove_chain(RestorePoints& points, const ProofOptions& options);

}  // namespace qchain
