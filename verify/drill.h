// The restore drill: a chain against its own manifests, with nothing live at hand.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "qcow2/chain.h"
#include "verify/check.h"
#include "verify/proof.h"
#include "verify/signature.h"

namespace qchain {

/// What a layer's manifest says of itself, and whether that is true.
struct ManifestVerdict {
  bool exists = false;
  std::optional<ManifestSummary> summary;  ///< nullopt: there is none, or it cannot be read.
  bool belongs = false;  ///< It was read to its end, is this layer's, and is trusted where that was asked.
  bool root_follows = false;  ///< From the digests of all manifests down to the bottom.
  std::string trusted_key;    ///< Path of the key that accepts its signature; empty: none was asked.
  Outcome outcome = Outcome::Done;
  std::vector<std::string> problems;
};

/// Whether there is a file under the name of the manifest of layer `index`.
bool has_manifest(const Chain& chain, std::size_t index);
/// How many layers from `index` down, without a gap, have a manifest.
std::size_t manifests_from(const Chain& chain, std::size_t index);
/// The digests of the disk that layer `index` and those beneath it describe, as far down as there are
/// manifests of one algorithm; nullptr where layer `index` has none. Throws Error.
std::unique_ptr<ChainDigests> digests_from(const Chain& chain, std::size_t index);

/// How far a manifest is followed.
enum class Depth {
  ManifestAlone,  ///< Itself, its layer's identity and its signature.
  Chain,          ///< And the root, from the manifests of all layers beneath.
};

/// Reads the manifest of layer `index` to its end, and holds it against the layer's identity, the manifest of
/// the layer beneath, the root that follows from the digests, and, where there are any, the trusted keys: one
/// of them has to accept its signature. Throws nothing but Io errors and interrupts.
ManifestVerdict judge_manifest(const Chain& chain, std::size_t index, const std::vector<TrustedKey>& trusted,
                               Depth depth = Depth::Chain);

/// Why a range is not what the manifest of layer `index` says, although the bytes of it that this layer holds
/// are right: Beneath, Missed, or Unknown where nobody can tell. `proof_of` gives what was proven of a layer
/// beneath; nullptr: nothing was. Throws Error where tables cannot be read.
Cause cause_beneath(const Chain& chain, std::size_t index, const GuestRange& range,
                    const std::function<const Proof*(std::size_t)>& proof_of);

/// What was proven of one layer, which is a restore point.
struct LayerDrill {
  std::string file;
  ManifestVerdict manifest;
  std::optional<Proof> proof;  ///< nullopt: its content was not looked at.
  /// What kept it from being looked at; Done: nothing.
  struct Failure {
    Outcome outcome = Outcome::Done;
    std::string message;
  } failure;
  Outcome outcome() const;
};

struct DrillOptions {
  ProofOptions proof;
  std::vector<TrustedKey> trusted;
  bool content = true;  ///< Else manifests, links and roots alone.
};

/// Every layer of a chain, from the top: its manifest, and its content against it. Works from the bottom up,
/// so that damage beneath is known as such.
std::vector<LayerDrill> drill(const Chain& chain, const DrillOptions& options);

}  // namespace qchain
