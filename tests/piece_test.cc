// What PiecePlanner promises, over random streams and limits.
#include "extent/piece.h"

#include <gtest/gtest.h>

#include "tests/random.h"
#include "tests/support.h"

namespace qchain::tests {
namespace {

using PieceTest = RandomTest;

TEST_F(PieceTest, PiecesAreTheStreamWithinTheLimits) {
  for (int round = 0; round < 3000; ++round) {
    PieceLimits limits;
    limits.boundary = random.between(1, 16);
    limits.data = limits.boundary * random.between(1, 6);
    limits.empty = limits.boundary * random.between(1, 6);
    Extents extents;
    const GuestOffset begin(random.chance(50) ? 0 : random.below(40));
    for (GuestOffset at = begin; random.chance(95);) {
      const std::uint64_t longest = random.one_of<std::uint64_t>({2, 10, 200});
      extents.push_back(
          {{at, at + random.between(1, longest)}, random.one_of({Kind::Inherit, Kind::Zero, Kind::Data})});
      at = extents.back().range.end;
    }
    const GuestOffset end = extents.empty() ? begin : extents.back().range.end;

    PiecePlanner planner(stream(extents), limits);
    Extents whole;
    Piece piece;
    GuestOffset at = begin;
    while (planner.next(piece)) {
      ASSERT_FALSE(piece.runs.empty());
      const GuestRange range{piece.runs.front().range.begin, piece.runs.back().range.end};
      ASSERT_EQ(range.begin, at);
      ASSERT_TRUE(is_merged(piece.runs, range));
      std::uint64_t data = 0;
      for (const Extent& run : piece.runs) {
        if (run.kind == Kind::Data) data += run.range.length();
        append(whole, run);
      }
      ASSERT_EQ(piece.data_bytes, data);
      ASSERT_LE(data, limits.data);
      ASSERT_LE(range.length() - data, limits.empty);
      if (range.end != end) {
        ASSERT_EQ(range.end.bytes() % limits.boundary, 0U) << "cuts a block";
      }
      at = range.end;
    }
    ASSERT_EQ(whole, collect(stream(extents)));
    ASSERT_FALSE(planner.next(piece)) << "stays at its end";
  }
}

// The disk's last unit is padded to the boundary by those who fetch it: with the padding it has to
// fit.
TEST_F(PieceTest, DataPaddedToTheBoundaryFitsTheLimit) {
  for (int round = 0; round < 2000; ++round) {
    PieceLimits limits;
    limits.boundary = random.between(2, 16);
    limits.data = limits.boundary * random.between(1, 4);
    limits.empty = limits.boundary * 4;
    const std::uint64_t size = random.between(1, 300);
    Extents extents;
    for (GuestOffset at(0); at < GuestOffset(size);) {
      const GuestOffset next = std::min(GuestOffset(size), at + limits.boundary * random.between(1, 4));
      extents.push_back({{at, next}, random.one_of({Kind::Zero, Kind::Data})});
      at = next;
    }
    PiecePlanner planner(stream(extents), limits);
    for (Piece piece; planner.next(piece);) {
      std::uint64_t padded = 0;
      for (const Extent& run : piece.runs) {
        if (run.kind == Kind::Data) padded += align_up(run.range.length(), limits.boundary);
      }
      ASSERT_LE(padded, limits.data);
    }
  }
}

// A piece holds many small runs, so that a fragmented disk is not one piece a fragment, but not any
// number of them.
TEST_F(PieceTest, FragmentsShareAPieceUpToABound) {
  Extents extents;
  for (std::uint64_t i = 0; i < 100000; ++i) {
    extents.push_back({guest_range(i, 1), i % 2 == 0 ? Kind::Data : Kind::Inherit});
  }
  PieceLimits limits;
  limits.boundary = 1;
  limits.data = limits.empty = 1 << 20;
  PiecePlanner planner(stream(extents), limits);
  Piece piece;
  ASSERT_TRUE(planner.next(piece));
  EXPECT_GE(piece.runs.size(), 1000U);
  EXPECT_LE(piece.runs.size(), 10000U);
}

}  // namespace
}  // namespace qchain::tests
