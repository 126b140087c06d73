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

/// The digest of every block of the disk that a chain describes, from its manifests alone: the one of the
/// topmost layer that holds the block; zeros where no layer does, or where a layer's end was passed on the
/// way down. A layer without a manifest is a gap: its own map tells which blocks it holds any byte of, and
/// those are unknown; of the others, the manifests beneath tell. Streamed in the order of the disk: memory
/// for one record a layer.
class ChainDigests {
 public:
  /// `manifests`: of layers `first_layer` and so on downwards, of one algorithm; not empty. What none of them
  /// holds is zeros.
  ChainDigests(const std::vector<std::shared_ptr<const Manifest>>& manifests, std::size_t first_layer);
  /// Of layer `first_layer` and all below it, from the top, where nullptr is a gap; at least one is none. One
  /// of another algorithm than the first is a gap too. The chain has to outlive this.
  ChainDigests(const Chain& chain, std::size_t first_layer,
               const std::vector<std::shared_ptr<const Manifest>>& manifests);
  ~ChainDigests();

  /// Of the topmost manifest; where the top layer is a gap, `algorithm`, `length` and `overlay` alone.
  const ManifestHeader& top() const noexcept { return top_; }
  /// Whether every block is known.
  bool is_complete() const noexcept { return complete_; }

  /// Neighbouring blocks, of which one layer holds the digests.
  struct Run {
    std::uint64_t count = 0;
    bool known = true;
    Held held = Held::None;         ///< None: by no layer; if known, they are zeros.
    std::size_t layer = 0;          ///< Whose manifest says so.
    const Digest* whole = nullptr;  ///< nullptr: zeros, or unknown. Valid until the next call.
    const Digest* part = nullptr;   ///< For Held::Part.
  };
  /// What blocks [first, first + at_most) have, for a beginning of them that is never empty. `first` only
  /// ever grows.
  Run next(std::uint64_t first, std::uint64_t at_most);

  /// Adds blocks [first, first + count) to `disk`, all of them known. The last one has the length that `end`,
  /// the end of the disk in bytes, leaves it.
  void add_to(DiskDigest& disk, std::uint64_t first, std::uint64_t count, std::uint64_t end);

  /// Reads all manifests to their ends: only now are the digests that were given proven to be what was
  /// written. Throws Error (BadManifest).
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

/// What the stored digests say of one block.
struct StoredBlock {
  GuestRange range;
  bool known = true;
  Held held = Held::None;
  std::size_t layer = 0;
  Digest whole;  ///< Empty: zeros, or unknown.
  Digest part;   ///< For Held::Part.
};

/// What the stored digests say of a piece, whose runs begin and end at blocks' borders or at the disk's end.
struct StoredPiece {
  std::vector<StoredBlock> data;  ///< Of each block of the Data runs, in order.
  /// Of the blocks of the Zero runs that are recorded as anything but zeros.
  std::vector<StoredBlock> not_zero;
  std::uint64_t zero_blocks = 0;    ///< Of the Zero runs that a layer holds as zeros.
  std::uint64_t unknown_bytes = 0;  ///< Of Data and Zero runs.
};
/// Reads `digests` on: for one worker at a time, in guest order. Inherit runs are passed over.
StoredPiece stored_piece(ChainDigests& digests, const Piece& piece);

}  // namespace qchain
