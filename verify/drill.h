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
  /// The layer does not stand where its manifest has it: another length, parent or kind, or the disk beneath
  /// is another one. Another tool has rewritten it, or one beneath.
  bool misfit = false;
  bool root_follows = false;  ///< From the digests of all manifests down to the bottom.
  std::string trusted_key;    ///< Path of the key that accepts its signature; empty: none was asked.
  Outcome outcome = Outcome::Done;
  std::vector<std::string> problems;
};

/// Whether there is a file under the name of the manifest of layer `index`.
bool has_manifest(const Chain& chain, std::size_t index);
/// Throws the first of the chain's link problems that no sealed manifest resolves: for what stands on the
/// identity of layers, such as an increment on this chain, or a verified restore. Throws Error (Io) too.
void require_resolved_links(const Chain& chain);

/// How many layers from `index` down, without a gap, have a manifest.
std::size_t manifests_from(const Chain& chain, std::size_t index);
/// The digests of the disk that layer `index` and those beneath it describe. A layer without a manifest is a
/// gap, as is one whose manifest cannot be read, has another algorithm than the topmost, or is of a layer
/// that stands elsewhere; see ChainDigests. nullptr where nothing is left. Throws Error (Io).
std::unique_ptr<ChainDigests> digests_from(const Chain& chain, std::size_t index);

/// How far a manifest is followed.
enum class Depth {
  ManifestAlone,  ///< Itself, its layer's identity and its signature.
  Chain,          ///< And the root, from the manifests of all layers beneath.
};

/// Reads the manifest of layer `index` to its end, and holds it against the layer's identity, the manifest of
/// the layer beneath, the root that follows from the digests, and, where there are any, the trusted keys: one
/// of them has to accept its signature. Where it was sealed again, it is held against the layer that lies
/// beneath today instead of the one that the identity records. Throws nothing but Io errors of layers, and
/// interrupts.
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
  /// Another tool has rewritten the layer, or one beneath, so that it is not provable block by block; but the
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

struct DrillOptions {
  ProofOptions proof;
  std::vector<TrustedKey> trusted;
  bool content = true;  ///< Else manifests, links and roots alone.
};

/// Every layer of a chain, from the top: its manifest, and its content against it. Works from the bottom up,
/// so that damage beneath is known as such.
std::vector<LayerDrill> drill(const Chain& chain, const DrillOptions& options);

}  // namespace qchain
