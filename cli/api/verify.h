// qchain::verify(): is a chain what was backed up? See qchain.h for what holds for every verb.
//
//     qchain::VerifyRequest request;
//     request.image = "/backup/vda.1.qcow2";
//     const qchain::VerifyResult result = qchain::verify(request);
//     if (result.outcome != qchain::Outcome::Done) {
//       for (const qchain::Verdict& verdict : result.verdicts) alarm(verdict.message);
//     }
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/api/point.h"
#include "cli/api/run.h"
#include "cli/api/verdict.h"
#include "extent/error.h"
#include "extent/export.h"
#include "qcow2/open_options.h"
#include "verify/discrepancy.h"
#include "verify/selection.h"

namespace qchain {

struct VerifyRequest {
  std::string image;  ///< Path of the topmost layer.
  OpenOptions open;
  /// URI of a live export to compare with the chain; empty: the chain is compared with its own
  /// manifests, as in a restore drill: metadata, links, every stored digest, the digest of the disk at every
  /// layer.
  std::string against;
  bool manifest_only = false;  ///< With `against`: compare it with the manifests, and read no layer.
  bool no_extents = false;     ///< With `against`: read every byte, whatever the server says of zeros.
  NbdOptions nbd;              ///< Of `against`; `connections` counts for the chain too.
  JobOwner* owner = nullptr;   ///< Of the job behind `against`.
  Selection selection;         ///< What was left out makes the outcome Incomplete at best.
  std::optional<std::chrono::seconds> max_duration;  ///< Stop after that time; Incomplete.
  std::vector<std::string> trust_keys;  ///< Paths: every manifest has to be signed by one of these keys.
  PointDemand point;                    ///< Which point the top has to be; BadManifest if it is another.
};

/// What was found in a layer's metadata.
struct MetadataSummary {
  Outcome outcome = Outcome::Done;
  std::uint64_t data_losses = 0;
  std::uint64_t harmless = 0;
  std::uint64_t leaks = 0;
};

/// What is known of a layer's manifest.
struct ManifestStatus {
  bool exists = false;
  bool is_readable = false;  ///< Else nothing below is known but `outcome` and `problems`.
  Outcome outcome = Outcome::Done;
  std::string algorithm;
  bool is_cryptographic = false;
  std::string root;                 ///< The digest of the disk; empty: unknown.
  bool root_follows = false;        ///< From the digests of all manifests down to the bottom.
  std::string own_digest;           ///< SHA-256 of the manifest, which a signature signs: HEX.
  std::string origin;               ///< What the digests are of: "pull", "seal" or "restore".
  std::string time;                 ///< The point in time, as the manifest records it; empty: unknown.
  std::string sealed_time;          ///< With "seal": when the digests were made.
  bool is_signed_unproven = false;  ///< Signed although layers below were not.
  std::string accepted;  ///< The recorded digest, where other content was sealed on somebody's word.
  bool is_signed = false;
  std::string trusted_key;  ///< Path of the key that accepts the signature; empty: none was asked.
  std::vector<std::string> problems;
};

/// What a layer holds, compared with its manifest.
struct ContentStatus {
  Findings findings;
  std::uint64_t blocks = 0;  ///< That were compared.
  std::uint64_t zero_blocks = 0;
  std::uint64_t partial_blocks = 0;
  std::uint64_t unknown_bytes = 0;
  std::optional<std::uint64_t> inherited_blocks;  ///< nullopt: only a part was looked at.
  std::optional<std::uint64_t> stopped_at;        ///< Offset where the time was up.
};

/// One layer, which is a restore point.
struct LayerStatus {
  std::string file;
  std::string layer_id;    ///< Empty: it was not written by qchain.
  std::string checkpoint;  ///< Empty: none was recorded.
  MetadataSummary metadata;
  std::optional<ManifestStatus> manifest;  ///< nullopt: the chain is not complete, so nobody looked.
  std::optional<ContentStatus> content;    ///< nullopt: not compared with its manifest.
  /// Another tool has rewritten the layer, but the digest of the whole disk is the recorded one: this one.
  std::string same_content;
};

/// The live side, beside the chain.
struct LiveStatus {
  std::uint64_t live_bytes = 0;
  std::uint64_t chain_bytes = 0;
  std::optional<std::uint64_t> compared_bytes;  ///< nullopt: the chain was not read.
  std::string live_digest;                      ///< Of all of it, HEX; empty: not all was read.
  std::string chain_digest;
};

struct VerifyResult {
  Outcome outcome = Outcome::Done;   ///< The worst of `selected`, and Incomplete where not all was selected.
  Outcome selected = Outcome::Done;  ///< Of what was selected, as if that were everything.
  std::vector<Verdict> verdicts;     ///< All that counts for the outcome; empty: nothing is wrong.
  std::vector<Verdict> notes;        ///< Worth knowing, and nothing wrong: Done.
  std::vector<LayerStatus> layers;   ///< From the top.
  std::string root;                  ///< The digest of the disk, by the top's manifest; empty: unknown.
  std::optional<PointInTime> point;  ///< That the top is at; nullopt: the chain is not complete.
  Findings findings;                 ///< Of all layers, or of the comparison with the live side.
  std::uint64_t asserted_bytes = 0;  ///< Known to be zeros on both sides, and not read.
  bool lists_all = true;             ///< Whether `findings` lists all that differs.
  std::optional<LiveStatus> live;    ///< nullopt: nothing live was compared.
};

/// What is found is a result and not thrown; thrown is what makes the request impossible, and a cancellation.
QCHAIN_API VerifyResult verify(const VerifyRequest& request, const Run& run = {});

}  // namespace qchain
