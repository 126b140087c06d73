#pragma once

#include <memory>
#include <span>
#include <vector>

#include "extent/page_buffer.h"
#include "extent/piece.h"
#include "qcow2/increment.h"

namespace qchain {

/// Compares what an increment doubts with the parent, piece by piece: what is equal after all is inherited.
/// One thread at a time; any number of them for one increment.
class DoubtJudge {
 public:
  /// In bytes: `unit` is what the layer stores or inherits as a whole, `block` (a multiple) what it does so
  /// with where nothing of it was read.
  DoubtJudge(Increment& increment, std::uint64_t unit, std::uint64_t block);

  /// `clean`: of this piece, as Increment::take_clean() gives it. `fetched`: its Data runs, read. Afterwards
  /// `stored` leaves out what is the parent's, and Zero runs of `piece` that are the parent's are Inherit.
  /// Throws as Increment::note_compared() does, and where the parent cannot be read.
  void judge(std::span<const CleanRange> clean, std::span<const ReadRequest> fetched, Piece& piece,
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
  std::vector<GuestRange> equal_;  // of this piece, in order: compared, or the parent's on trust
  Extents missed_;
  std::uint64_t equal_data_ = 0;
};

}  // namespace qchain
