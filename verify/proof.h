// Bytes against stored digests: a layer against its own manifest, or any disk against those of a chain.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "extent/pass.h"
#include "qcow2/chain.h"
#include "verify/chain_digests.h"
#include "verify/discrepancy.h"
#include "verify/restore_points.h"
#include "verify/selection.h"

namespace qchain {

/// `extents`, and Inherit wherever nothing was selected. `length`: bytes of the disk.
ExtentSource selected(ExtentSource extents, const Selection& selection, std::uint64_t length);

/// `pieces`, until the deadline; `stopped_at` is the offset at which it ended them, if it did.
PieceSource until(PieceSource pieces, const std::optional<std::chrono::steady_clock::time_point>& deadline,
                  std::optional<std::uint64_t>& stopped_at);

struct ProofOptions {
  unsigned workers = 1;
  Selection selection;
  std::optional<std::chrono::steady_clock::time_point> deadline;
  std::function<void(std::uint64_t done)> progress = [](std::uint64_t) {};
  std::size_t max_listed = 1000;  ///< Discrepancies, and as many unread ranges.
};

/// Findings of bytes that were compared with stored digests, and how much was compared.
struct Proof : Findings {
  std::uint64_t blocks = 0;  ///< That were compared with a stored digest, or a stored "zeros".
  std::uint64_t zero_blocks = 0;
  std::uint64_t partial_blocks = 0;
  std::uint64_t unknown_bytes = 0;  ///< Of the disk: no manifest says what they should be.
  /// Where the deadline stopped it; nullopt: it came to the end of what was selected.
  std::optional<std::uint64_t> stopped_at;
};

/// Where the bytes of a mapping are.
BlockSource source_of(const Mapping& mapping);

/// Compares every byte that layer `index` holds with its manifest: every digest that is stored, and that the
/// layer holds nothing else. Where a block fails and the layer's own bytes of it are right, the cause is
/// Missed; see cause_from_lower_layers(). Throws Error where a file is gone, or the manifest is
/// bad.
Proof prove_layer(RestorePoints& points, std::size_t index, const ProofOptions& options);

/// Compares a disk with the digests of a chain, block by block. `chain` shows where its blocks come from.
/// Throws likewise.
Proof prove_disk(BlockDevice& disk, const Chain& chain, ChainDigests& digests, const ProofOptions& options);

/// Lists in `proof` what of a disk that `chain` describes is not what the digests say, or cannot be read. All
/// have to outlive the stages.
StageFactory proof_stage(const Chain& chain, ChainDigests& digests, Proof& proof, std::size_t max_listed);

/// Throws Error (Mismatch) for a block of a chain that is not what the manifests say, before any stage after
/// it makes use of it. `unknown_bytes` counts what no manifest knows.
StageFactory guard(const Chain& chain, ChainDigests& digests, std::uint64_t& unknown_bytes);

}  // namespace qchain
