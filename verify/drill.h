// The restore drill: a chain against its own manifests, with nothing live at hand.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "qcow2/chain.h"
#include "verify/manifest.h"

namespace qchain {

/// A range of the disk where a layer's file does not give what its manifest says.
struct Damage {
  GuestRange range;      ///< Whole blocks.
  std::size_t layer = 0; ///< Whose manifest says so.
  /// Layer, file offset of the bytes that were read for the beginning of the range.
  Mapping source;
  /// The layer's own bytes are as they were written: what differs comes from beneath, where the changes that
  /// were recorded missed one, or where a layer below is damaged.
  bool own_bytes_intact = false;
  std::string stored;    ///< Digest of the first block, "sha256:HEX"; "zeros"; "not held".
  std::string found;
};

/// What was proven of one layer, which is a restore point.
struct LayerProof {
  std::string file;
  bool has_manifest = false;
  std::uint64_t blocks = 0;        ///< Held, and checked against their digests.
  std::uint64_t zero_blocks = 0;   ///< Of them.
  std::uint64_t partial_blocks = 0;
  std::uint64_t read_bytes = 0;
  std::optional<std::string> root; ///< As recorded, and found to follow from the digests; nullopt: unknown.
  std::vector<Damage> damages;     ///< Merged and capped.
  std::uint64_t damaged_bytes = 0; ///< Exact.
};

struct DrillOptions {
  unsigned workers = 1;
  /// Called with the bytes of the layers' disks that have been dealt with.
  std::function<void(std::uint64_t done)> progress = [](std::uint64_t) {};
};

/// Which layers, from the top, have a manifest beside them.
std::vector<bool> manifests_of(const Chain& chain);

/// Reads the manifest of layer `index` to its end, and holds it against the layer's identity, the manifest of
/// the layer beneath, and the root that follows from the digests. Throws Error: BadManifest where it is damaged
/// or another layer's; Mismatch where the root or a link does not fit.
std::optional<Digest> judge_manifest(const Chain& chain, std::size_t index);

/// Holds every byte that layer `index` holds against its manifest: every digest that is stored, and that the
/// layer holds nothing else. Throws Error where something cannot be read.
LayerProof drill(Chain& chain, std::size_t index, const DrillOptions& options);

}  // namespace qchain
