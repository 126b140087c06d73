#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "extent/piece.h"
#include "qcow2/chain.h"
#include "verify/manifest.h"

namespace qchain {

/// The digest of every block of the disk that a chain describes, from its manifests alone: that of the
/// topmost layer that holds the block; zeros if no layer does, or if the block is past the end of a layer
/// further up. A layer without a manifest is a gap: blocks of which it holds any byte, according to its
/// mapping, are unknown; the others come from the layers below. Streamed in guest order; needs memory for one
/// record per layer.
class ChainDigests {
 public:
  /// `manifests`: of layer `first_layer` and those below it, in this order; all with the same algorithm; not
  /// empty. Blocks that none of them holds are zeros.
  ChainDigests(const std::vector<std::shared_ptr<const Manifest>>& manifests, std::size_t first_layer);
  /// `manifests`: of layer `first_layer` and all layers below it; nullptr is a gap, as is a manifest with
  /// another algorithm than the first. At least one is not nullptr. The chain has to outlive this.
  ChainDigests(const Chain& chain, std::size_t first_layer,
               const std::vector<std::shared_ptr<const Manifest>>& manifests);
  ~ChainDigests();

  /// The header of the topmost manifest; if the top layer is a gap, only `algorithm`, `length` and `overlay`.
  const ManifestHeader& top() const noexcept { return top_; }
  /// Whether every block is known.
  bool is_complete() const noexcept { return complete_; }

  /// Adjacent blocks whose digests come from the same layer.
  struct Run {
    std::uint64_t count = 0;
    bool known = true;
    Held held = Held::None;         ///< None: no layer holds them; if known, they are zeros.
    std::size_t layer = 0;          ///< The layer of that manifest.
    const Digest* whole = nullptr;  ///< nullptr: zeros, or unknown. Valid until the next call.
    const Digest* part = nullptr;   ///< For Held::Part.
  };
  /// The digests of blocks [first, first + count), where count is from 1 to `at_most`. `first` must not
  /// decrease from call to call.
  Run next(std::uint64_t first, std::uint64_t at_most);

  /// Adds blocks [first, first + count), which have to be known, to `disk`. `end`: size of the disk in bytes,
  /// which limits the length of the last block.
  void add_to(DiskDigest& disk, std::uint64_t first, std::uint64_t count, std::uint64_t end);

  /// Reads all manifests to their ends and checks them; until then the digests returned are unverified.
  /// Throws Error (BadManifest).
  void finish();

 private:
  class Source;
  class Recorded;
  class Gap;

  std::vector<std::unique_ptr<Source>> sources_;
  std::size_t first_layer_;
  bool complete_;
  ManifestHeader top_;
};

/// The stored digest of one block.
struct StoredBlock {
  GuestRange range;
  bool known = true;
  Held held = Held::None;
  std::size_t layer = 0;
  Digest whole;  ///< Empty: zeros, or unknown.
  Digest part;   ///< For Held::Part.
};

/// The stored digests of a piece, whose runs begin and end at block boundaries or at the end of the disk.
struct StoredPiece {
  std::vector<StoredBlock> data;  ///< One per block of the Data runs, in order.
  /// Blocks of the Zero runs that are not recorded as zeros.
  std::vector<StoredBlock> not_zero;
  std::uint64_t zero_blocks = 0;    ///< Blocks of the Zero runs that a layer holds as zeros.
  std::uint64_t unknown_bytes = 0;  ///< In Data and Zero runs.
};
/// Advances `digests`: call it from one worker at a time, in guest order. Skips Inherit runs.
StoredPiece stored_piece(ChainDigests& digests, const Piece& piece);

}  // namespace qchain
