// The extent algebra against a model that holds one kind for each byte.
#include "extent/extent.h"

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <vector>

#include "extent/error.h"
#include "tests/random.h"
#include "tests/support.h"

namespace qchain::tests {
namespace {

// A stretch of a disk, byte by byte.
struct Model {
  std::uint64_t begin = 0;
  std::vector<Kind> kinds;

  std::uint64_t end() const { return begin + kinds.size(); }
  GuestRange range() const { return guest_range(begin, kinds.size()); }
  Kind at(std::uint64_t offset) const {
    return offset >= begin && offset < end() ? kinds[offset - begin] : Kind::Inherit;
  }
  Extents merged() const {
    Extents extents;
    for (std::uint64_t i = 0; i < kinds.size(); ++i) {
      if (i > 0 && kinds[i] == kinds[i - 1]) {
        extents.back().range.end = GuestOffset(begin + i + 1);
      } else {
        extents.push_back({guest_range(begin + i, 1), kinds[i]});
      }
    }
    return extents;
  }
};

// The rules of a layer, as DESIGN.md words them.
Model normalised(const Model& model, std::uint64_t unit, Position position) {
  Model out{model.begin, {}};
  for (std::uint64_t at = model.begin; at < model.end();) {
    const std::uint64_t unit_end = std::min((at / unit + 1) * unit, model.end());
    bool data = false;
    bool zero = false;
    bool inherit = false;
    for (std::uint64_t i = at; i < unit_end; ++i) {
      data = data || model.at(i) == Kind::Data;
      zero = zero || model.at(i) == Kind::Zero;
      inherit = inherit || model.at(i) == Kind::Inherit;
    }
    Kind kind = Kind::Inherit;
    if (data || (position == Position::Overlay && zero && inherit)) {
      kind = Kind::Data;
    } else if (position == Position::Overlay && zero) {
      kind = Kind::Zero;
    }
    out.kinds.insert(out.kinds.end(), unit_end - at, kind);
    at = unit_end;
  }
  return out;
}

class ExtentTest : public RandomTest {
 protected:
  Kind any_kind() { return random.one_of({Kind::Inherit, Kind::Zero, Kind::Data}); }

  Model any_model(std::uint64_t begin) {
    Model model{begin, {}};
    const std::uint64_t longest = random.one_of<std::uint64_t>({2, 20, 100});
    for (std::uint64_t runs = random.below(12); runs > 0; --runs) {
      model.kinds.insert(model.kinds.end(), random.between(1, longest), any_kind());
    }
    return model;
  }

  // One of many equivalent streams: extents are split at random.
  ExtentSource any_stream_of(const Model& model) {
    Extents cut;
    for (const Extent& extent : model.merged()) {
      for (GuestRange rest = extent.range; !rest.empty();) {
        const std::uint64_t length = random.chance(50) ? rest.length() : random.between(1, rest.length());
        cut.push_back({{rest.begin, rest.begin + length}, extent.kind});
        rest.begin = cut.back().range.end;
      }
    }
    return stream(cut);
  }
};

TEST_F(ExtentTest, NormaliseIsTheModelsRuleForEveryUnit) {
  for (int round = 0; round < 3000; ++round) {
    const Model model = any_model(random.chance(50) ? 0 : random.below(200));
    const std::uint64_t unit = random.between(1, 70);
    const Position position = random.one_of({Position::Bottom, Position::Overlay});
    SCOPED_TRACE("begin " + std::to_string(model.begin) + ", unit " + std::to_string(unit));
    std::vector<Extent> raw;
    const ExtentSource source = normalise(any_stream_of(model), unit, position);
    while (const auto extent = source()) raw.push_back(*extent);
    ASSERT_TRUE(is_merged(raw, model.range())) << "merged without collect()";
    ASSERT_EQ(raw, normalised(model, unit, position).merged());
    EXPECT_EQ(source(), std::nullopt) << "stays at its end";
  }
}

TEST_F(ExtentTest, NormaliseIsIdempotent) {
  for (int round = 0; round < 1000; ++round) {
    const Model model = any_model(random.below(100));
    const std::uint64_t unit = random.between(1, 70);
    const Position position = random.one_of({Position::Bottom, Position::Overlay});
    const Extents once = collect(normalise(any_stream_of(model), unit, position));
    ASSERT_EQ(collect(normalise(stream(once), unit, position)), once);
  }
}

// The worst possible mistake here: a zero in an overlay that lets the parent's data reappear.
TEST_F(ExtentTest, NormaliseNeverUncoversTheParent) {
  for (int round = 0; round < 1000; ++round) {
    const Model model = any_model(0);
    const Extents stored = collect(normalise(any_stream_of(model), random.between(1, 70), Position::Overlay));
    for (const Extent& extent : stored) {
      for (std::uint64_t at = extent.range.begin.bytes(); at < extent.range.end.bytes(); ++at) {
        if (extent.kind == Kind::Inherit) {
          ASSERT_EQ(model.at(at), Kind::Inherit);
        } else if (extent.kind == Kind::Zero) {
          ASSERT_EQ(model.at(at), Kind::Zero);
        }
      }
    }
  }
}

TEST_F(ExtentTest, NormaliseWorksAtTheEndOfTheAddressSpace) {
  const std::uint64_t end = ~std::uint64_t{0} & ~std::uint64_t{0xFFFF};
  const Extents extents{{{GuestOffset(end - 0x30000), GuestOffset(end)}, Kind::Data}};
  EXPECT_EQ(collect(normalise(stream(extents), 0x10000, Position::Overlay)), extents);
}

TEST_F(ExtentTest, ClipIsWhatIsInTheRange) {
  for (int round = 0; round < 2000; ++round) {
    const Model model = any_model(random.below(50));
    const std::uint64_t begin = random.below(200);
    const GuestRange range = guest_range(begin, random.below(200));
    Model expected{std::max(begin, model.begin), {}};
    for (std::uint64_t at = expected.begin; at < std::min(model.end(), range.end.bytes()); ++at) {
      expected.kinds.push_back(model.at(at));
    }
    ASSERT_EQ(collect(clip(any_stream_of(model), range)), expected.merged());
  }
}

TEST_F(ExtentTest, ClipAsksForNothingPastTheRange) {
  // A stream that would not end.
  const ExtentSource endless = [at = std::uint64_t{0}]() mutable -> std::optional<Extent> {
    EXPECT_LE(at, 100U);
    if (at > 200) return std::nullopt;
    at += 10;
    return Extent{guest_range(at - 10, 10), Kind::Data};
  };
  EXPECT_EQ(collect(clip(endless, guest_range(5, 90))), (Extents{{guest_range(5, 90), Kind::Data}}));
}

TEST_F(ExtentTest, ZipCombinesEveryByte) {
  for (int round = 0; round < 2000; ++round) {
    const std::uint64_t begin = random.below(50);
    const Model a = any_model(begin);
    const Model b = any_model(begin);
    // Any function of two kinds.
    std::array<std::array<Kind, 3>, 3> table{};
    for (auto& row : table) {
      for (Kind& kind : row) kind = any_kind();
    }
    const auto combine = [&](Kind x, Kind y) {
      return table[static_cast<std::size_t>(x)][static_cast<std::size_t>(y)];
    };
    Model expected{begin, {}};
    for (std::uint64_t at = begin; at < std::max(a.end(), b.end()); ++at) {
      expected.kinds.push_back(combine(a.at(at), b.at(at)));
    }
    ASSERT_EQ(collect(zip(any_stream_of(a), any_stream_of(b), combine)), expected.merged());
  }
}

TEST_F(ExtentTest, EitherDataIsDataOfEither) {
  for (const Kind a : {Kind::Inherit, Kind::Zero, Kind::Data}) {
    for (const Kind b : {Kind::Inherit, Kind::Zero, Kind::Data}) {
      EXPECT_EQ(either_data(a, b), a == Kind::Data || b == Kind::Data ? Kind::Data : Kind::Zero);
    }
  }
}

TEST_F(ExtentTest, CollectAndAppendMerge) {
  for (int round = 0; round < 1000; ++round) {
    const Model model = any_model(random.below(50));
    ASSERT_EQ(collect(any_stream_of(model)), model.merged());
    Extents appended;
    const ExtentSource source = any_stream_of(model);
    while (const auto extent = source()) {
      append(appended, *extent);
      append(appended, {{extent->range.end, extent->range.end}, any_kind()});  // nothing
    }
    ASSERT_EQ(appended, model.merged());
  }
}

TEST_F(ExtentTest, AppendKeepsGapsApart) {
  Extents extents;
  append(extents, {guest_range(0, 10), Kind::Data});
  append(extents, {guest_range(11, 10), Kind::Data});
  EXPECT_EQ(extents.size(), 2U);
}

// A device that answers in short pieces gives the same stream.
TEST_F(ExtentTest, ShortAnswersOfADeviceAreOneStream) {
  for (int round = 0; round < 300; ++round) {
    Model model = any_model(0);
    MemoryDevice device(Bytes(model.kinds.size()), model.merged(), random.between(1, 40));
    ASSERT_EQ(collect(extents_of(device)), model.merged());
    const std::uint64_t begin = random.between(0, model.end());
    const GuestRange range = guest_range(begin, random.between(0, model.end() - begin));
    ASSERT_EQ(collect(extents_of(device, range)), collect(clip(stream(model.merged()), range)));
  }
}

TEST_F(ExtentTest, ArithmeticIsCheckedInAllOf64Bits) {
  __extension__ typedef unsigned __int128 Wide;  // no 64 bits overflow it
  for (int round = 0; round < 2000; ++round) {
    const std::uint64_t a = random.any_size();
    const std::uint64_t b = random.any_size();
    std::uint64_t sum = 0;
    std::uint64_t product = 0;
    const Outcome adding = outcome_of([&] { sum = checked_add(a, b); });
    const Outcome multiplying = outcome_of([&] { product = checked_multiply(a, b); });
    const Wide wide_sum = Wide{a} + b;
    const Wide wide_product = Wide{a} * b;
    ASSERT_EQ(adding, wide_sum >> 64 != 0 ? Outcome::Mismatch : Outcome::Done);
    ASSERT_EQ(multiplying, wide_product >> 64 != 0 ? Outcome::Mismatch : Outcome::Done);
    if (adding == Outcome::Done) {
      ASSERT_EQ(sum, wide_sum);
    }
    if (multiplying == Outcome::Done) {
      ASSERT_EQ(product, wide_product);
    }
    if (b == 0) continue;
    ASSERT_EQ(align_down(a, b), a / b * b);
    ASSERT_EQ(divide_up(a, b), (Wide{a} + b - 1) / b);
    if ((Wide{a} + b - 1) >> 64 == 0) {
      ASSERT_EQ(align_up(a, b), (a + b - 1) / b * b);
    }
  }
}

// "1 before 5 before 3 before 6 before 4", whatever the order in which they come.
TEST_F(ExtentTest, TheWorseOfTwoOutcomesIsAnOrder) {
  constexpr std::array kOrder{Outcome::Done, Outcome::Incomplete,  Outcome::Inconclusive,
                              Outcome::Io,   Outcome::BadManifest, Outcome::Mismatch};
  for (std::size_t i = 0; i < kOrder.size(); ++i) {
    for (std::size_t j = 0; j < kOrder.size(); ++j) {
      EXPECT_EQ(worse(kOrder[i], kOrder[j]), kOrder[std::max(i, j)]);
    }
    EXPECT_EQ(worse(kOrder[i], Outcome::Usage), Outcome::Usage);
    EXPECT_EQ(worse(Outcome::Interrupted, kOrder[i]), Outcome::Interrupted);
    EXPECT_EQ(worse(Outcome::Terminated, kOrder[i]), Outcome::Terminated);
  }
}

}  // namespace
}  // namespace qchain::tests
