// Bytes against stored digests: a layer against its own manifest, or any disk against those of a chain.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "extent/scan.h"
#include "qcow2/chain.h"
#include "verify/chain_digests.h"
#include "verify/restore_points.h"

namespace qchain {

/// Which part of the disk is looked at. Everything, by default.
struct Selection {
  /// Part `part` (from 1 on) of `parts` that together are everything: the disk is dealt out in stripes.
  unsigned part = 1;
  unsigned parts = 1;
  /// Where not empty: nothing but these ranges, in order, extended to whole blocks.
  std::vector<GuestRange> only;

  bool is_everything() const { return parts == 1 && only.empty(); }
  static constexpr unsigned kMaxParts = 1000000;
  static constexpr std::uint64_t kStripe = std::uint64_t{16} << 20;
};

/// `extents`, and Inherit wherever nothing was selected. `length`: bytes of the disk.
ExtentSource selected(ExtentSource extents, const Selection& selection, std::uint64_t length);

/// `pieces`, until the deadline; where it ended them, `stopped_at` tells the offset.
PieceSource until(PieceSource pieces, const std::optional<std::chrono::steady_clock::time_point>& deadline,
                  std::optional<std::uint64_t>& stopped_at);

struct ProofOptions {
  unsigned workers = 1;
  Selection selection;
  std::optional<std::chrono::steady_clock::time_point> deadline;
  std::function<void(std::uint64_t done)> progress = [](std::uint64_t) {};
  std::size_t max_listed = 1000;  ///< Damages, and as many unreadable ranges.
};

/// Why bytes are not what the manifest says.
enum class Cause : std::uint8_t {
  Rotted,   ///< The layer's own bytes are not what was written.
  Missed,   ///< The layer's own bytes are right, and so is what is beneath: the bitmap missed a change.
  Beneath,  ///< The layer's own bytes are right, and a layer beneath is damaged there.
  Changed,  ///< The other side holds something else than what was recorded here.
  Unknown,  ///< No manifest tells which side is right.
  Moving,   ///< The live side read differently a second time.
};
inline constexpr std::size_t kCauses = 6;
/// "rotted", "missed by the dirty bitmap", "damaged beneath", "changed", "unknown", "moving".
const char* to_string(Cause cause) noexcept;

/// A range of the disk where the bytes are not what a manifest says.
struct Damage {
  GuestRange range;  ///< Whole blocks.
  Cause cause = Cause::Rotted;
  std::size_t layer = 0;  ///< Whose manifest says so.
  Mapping source;         ///< Who supplied the bytes at the beginning of the range.
  std::string stored;     ///< Of the first block: "sha256:HEX", "zeros" or "not held".
  std::string found;      ///< "sha256:HEX".
};

/// Blocks that could not be read.
struct Unreadable {
  GuestRange range;
  Outcome outcome = Outcome::Io;  ///< Io, or Mismatch where a layer's metadata is corrupt.
  std::string message;
};

/// What came of it. The lists are merged and capped, the numbers exact.
struct Proof {
  std::uint64_t blocks = 0;  ///< That were held against a stored digest, or a stored "zeros".
  std::uint64_t zero_blocks = 0;
  std::uint64_t partial_blocks = 0;
  std::uint64_t read_bytes = 0;
  std::uint64_t unknown_bytes = 0;  ///< Of the disk: no manifest says what they should be.
  std::vector<Damage> damages;
  std::uint64_t damaged_bytes = 0;
  std::vector<Unreadable> unreadable;
  std::uint64_t unreadable_bytes = 0;
  /// Where the deadline stopped it; nullopt: it came to the end of what was selected.
  std::optional<std::uint64_t> stopped_at;

  bool is_clean() const { return damaged_bytes == 0 && unreadable_bytes == 0; }
  /// Whether the lists were long enough.
  bool lists_all() const;
};

/// Whether damage, or what could not be read, lies in `range`.
bool touches(const Proof& proof, const GuestRange& range);

/// Holds every byte that layer `index` holds against its manifest: every digest that is stored, and that the
/// layer holds nothing else. Where a block fails and the layer's own bytes of it are right, the cause is
/// Missed: who knows what is beneath may know better. Throws Error where a file is gone, or the manifest is
/// bad.
Proof prove_layer(RestorePoints& points, std::size_t index, const ProofOptions& options);

/// Holds a disk against the digests of a chain, block by block. `chain` tells who held the block. Throws
/// likewise.
Proof prove_disk(BlockDevice& disk, const Chain& chain, ChainDigests& digests, const ProofOptions& options);

/// Adds to the list of what cannot be read, as a part of the last range where the two are alike.
void add_unreadable(Proof& proof, const Unreadable& unreadable, std::size_t max_listed);

/// Watches a disk that a chain describes while it is read, and lists in `proof` what is not what the digests
/// say, or cannot be read. All have to outlive the watchers.
WatcherFactory disk_watcher(const Chain& chain, ChainDigests& digests, Proof& proof, std::size_t max_listed);

/// Watches a chain while it is read, and throws Error (Mismatch) for a block that is not what the manifests
/// say, before anybody else makes use of it. `unknown_bytes` counts what no manifest knows.
WatcherFactory guard(const Chain& chain, ChainDigests& digests, std::uint64_t& unknown_bytes);

}  // namespace qchain
