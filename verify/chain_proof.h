// A chain compared with its own manifests: the restore drill.
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

/// Why a range is not what the manifest of layer `index` says, although the bytes of it that this layer holds
/// are right: Beneath, Missed, or Unknown where nobody can tell. `proof_of` gives what was proven of a layer
/// beneath; nullptr: nothing was. Throws Error where tables cannot be read.
Cause cause_from_lower_layers(const Chain& chain, std::size_t index, const GuestRange& range,
                    const std::function<const Proof*(std::size_t)>& proof_of);

/// What was proven of one layer, which is a restore point.
struct LayerProof {
  std::string file;
  ManifestVerdict manifest;
  std::optional<Proof> proof;  ///< nullopt: its content was not looked at.
  /// Another tool has rewritten the layer, or one below, so that it is not provable block by block; but the
  /// digest of the whole disk, of bytes that were read, is the recorded one: this one. Empty: that was not
  /// looked at, or is not so.
  std::string same_content;
  /// What kept it from being looked at; Done: nothing.
  struct Failure {
    Outcome outcome = Outcome::Done;
    std::string message;
  } failure;
  Outcome outcome() const;
};

/// The manifests of every layer, from the top: each one checked, with its root; nothing else is read.
std::vector<LayerProof> check_manifests(RestorePoints& points);

/// The same, and the content of every layer compared with its manifest. Works from the bottom up, so that
/// damage below is known as such.
std::vector<LayerProof> prove_chain(RestorePoints& points, const ProofOptions& options);

}  // namespace qchain
