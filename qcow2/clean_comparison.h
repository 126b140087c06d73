#pragma once

#include <memory>
#include <span>
#include <vector>

#include "extent/page_buffer.h"
#include "extent/stage.h"
#include "qcow2/increment.h"

namespace qchain {

/// Compares suspect clean ranges of an increment with the parent: makes Inherit of what is equal, both of
/// what is stored and of the Zero runs. fetched() throws as Increment::note_compared() does, and if the
/// parent cannot be read.
class CleanComparison : public Stage {
 public:
  /// In bytes: `unit` is what the layer stores or inherits as a whole; `block`, a multiple of it, is the same
  /// for ranges of which nothing was read.
  CleanComparison(Increment& increment, std::uint64_t unit, std::uint64_t block);

  void plan(const Piece& piece) override;
  void fetched(Batch& batch) override;

 private:
  void leave_out_equal(Piece& piece) const;
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
  ReadBuffer bytes_;
  std::vector<CleanRange> clean_;  // of this piece
  std::vector<GuestRange> equal_;  // of this piece, in order: found equal, or trusted to be
  Extents missed_;                 // of this piece: clean in the bitmap, but not equal
  std::uint64_t equal_data_ = 0;
};

}  // namespace qchain
