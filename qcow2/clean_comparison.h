#pragma once

#include <memory>
#include <span>
#include <vector>

#include "extent/page_buffer.h"
#include "extent/piece.h"
#include "qcow2/increment.h"

namespace qchain {

/// Compares suspect clean ranges of an increment with the parent, piece by piece: what is equal is inherited.
/// For one thread at a time; there can be several for one increment.
class CleanComparison {
 public:
  /// In bytes: `unit` is what the layer stores or inherits as a whole; `block`, a multiple of it, is the same
  /// for ranges of which nothing was read.
  CleanComparison(Increment& increment, std::uint64_t unit, std::uint64_t block);

  /// `clean`: the clean ranges of this piece, from Increment::take_clean(). `fetched`: its Data runs, read.
  /// Makes Inherit of what equals the parent, in `stored` and in the Zero runs of `piece`. Throws as
  /// Increment::note_compared() does, and if the parent cannot be read.
  void apply(std::span<const CleanRange> clean, std::span<const ReadRequest> fetched, Piece& piece,
             Extents& stored);

 private:
  void compare(const GuestRange& part, std::span<const std::byte> live);
  void compare_block(const GuestRange& block, std::span<const std::byte> live,
                     std::span<const std::byte> parent);
  void add_equal(const GuestRange& range);
  bool is_equal(const GuestRange& range) const;
  void leave_out(const Extent& extent, std::uint64_t step, Extents& kept) const;

  Increment& increment_;
  const std::uint64_t unit_;
  const std::uint64_t block_;
  std::unique_ptr<Reader> parent_;
  PageBuffer bytes_;
  std::vector<GuestRange> equal_;  // of this piece, in order: found equal, or trusted to be
  Extents missed_;                 // of this piece: clean in the bitmap, but not equal
  std::uint64_t equal_data_ = 0;
};

}  // namespace qchain
