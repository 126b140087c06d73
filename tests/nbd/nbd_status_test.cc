// Block status replies, and how far they are relied on.
#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>

#include "cli/pull.h"
#include "extent/nbd_export.h"
#include "tests/nbd/fake_server.h"
#include "tests/parsed.h"

namespace qchain::tests {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr std::uint32_t kZero = 2, kHoleZero = 3, kDirty = 1;
constexpr std::uint32_t kBase = 1, kBitmap = 2;  // the contexts' ids

const std::string kBaseName = "base:allocation";
const Changes kByBitmap{Changes::Source::DirtyBitmap, {}};

ExportStatus piece(std::uint64_t begin, std::uint64_t end, bool zero, bool dirty) {
  return {{GuestOffset(begin), GuestOffset(end)}, zero, dirty};
}

class NbdStatus : public ::testing::Test {
 protected:
  NbdStatus() : server(disk_bytes(kMiB)) { server.offer.contexts = {kBaseName, "qemu:dirty-bitmap:b"}; }

  // All status requests are answered with these, for each of the two contexts.
  void answer_with(const StatusEntries& base, const StatusEntries& bitmap) {
    server.on_status = [=](Wire& wire, const Request& request) {
      wire.status(request, kBase, base, Last::No);
      wire.status(request, kBitmap, bitmap, Last::Yes);
    };
  }

  std::vector<ExportStatus> status(const GuestRange& range) {
    NbdExport live(target_of(server.uri()), kByBitmap);
    return live.status(range);
  }
  auto asking() {
    return [this] { status(guest_range(0, kMiB)); };
  }

  FakeServer server;
};

TEST_F(NbdStatus, CutsTheContextsAtEachOthersBorders) {
  answer_with({{100, 0}, {200, kZero}, {700, 1}}, {{150, kDirty}, {350, 0}, {500, kDirty}});
  EXPECT_THAT(status(guest_range(4096, 1000)),
              ElementsAre(piece(4096, 4196, false, true), piece(4196, 4246, true, true),
                          piece(4246, 4396, true, false), piece(4396, 4596, false, false),
                          piece(4596, 5096, false, true)));
}

// As with servers of files that end inside a sector: the reply does not go past what is known already.
TEST_F(NbdStatus, GoesOnWhereAnAnswerEndsInsideASector) {
  server.on_status = [](Wire& wire, const Request& request) {
    const bool first = request.offset < 1000;
    const auto length = static_cast<std::uint32_t>(first ? 1000 - request.offset : request.length);
    wire.status(request, kBase, {{length, first ? 0 : kZero}}, Last::No);
    wire.status(request, kBitmap, {{length, first ? kDirty : 0}}, Last::Yes);
  };
  NbdExport live(target_of(server.uri()), kByBitmap);
  EXPECT_THAT(live.status(guest_range(0, kMiB)), ElementsAre(piece(0, 1000, false, true)));
  EXPECT_THAT(live.status(guest_range(1000, 5000)), ElementsAre(piece(1000, 1024, false, true)));
  EXPECT_THAT(live.status(guest_range(1024, 5000)), ElementsAre(piece(1024, 6024, true, false)));
  const Extents all = collect(extents_of(live));
  EXPECT_THAT(all, ElementsAre(Extent{guest_range(0, 1024), Kind::Data},
                               Extent{{GuestOffset(1024), GuestOffset(kMiB)}, Kind::Inherit}));
}

TEST_F(NbdStatus, TakesOnlyTheZeroBitForZeros) {
  answer_with({{kMiB, ~kZero}}, {{kMiB, kDirty}});
  EXPECT_THAT(status(guest_range(0, kMiB)), ElementsAre(piece(0, kMiB, false, true)));
}

TEST_F(NbdStatus, TakesOnlyTheDirtyBitForDirty) {
  answer_with({{kMiB, 0}}, {{kMiB, ~kDirty}});
  EXPECT_THAT(status(guest_range(0, kMiB)), ElementsAre(piece(0, kMiB, false, false)));
}

TEST_F(NbdStatus, ClipsWhatOvershootsTheRequest) {
  answer_with({{512, 0}, {0xFFFFFFFF, kZero}}, {{4 * kMiB, kDirty}, {kMiB, 0}});
  EXPECT_THAT(status(guest_range(0, 4096)),
              ElementsAre(piece(0, 512, false, true), piece(512, 4096, true, true)));
}

TEST_F(NbdStatus, GoesAsFarAsTheShorterContextSays) {
  answer_with({{kMiB, 0}}, {{512, 0}, {512, kDirty}});
  EXPECT_THAT(status(guest_range(0, kMiB)),
              ElementsAre(piece(0, 512, false, false), piece(512, 1024, false, true)));
}

TEST_F(NbdStatus, AsksAgainWhereTheAnswerWasShort) {
  answer_with({{64 * kKiB, kZero}, {64 * kKiB, 0}}, {{256 * kKiB, kDirty}});
  NbdExport live(target_of(server.uri()), kByBitmap);
  const Extents extents = collect(extents_of(live));
  ASSERT_EQ(extents.size(), 16U);
  for (std::size_t i = 0; i < extents.size(); ++i) {
    EXPECT_EQ(extents[i].range, guest_range(i * 64 * kKiB, 64 * kKiB));
    EXPECT_EQ(extents[i].kind, i % 2 == 0 ? Kind::Zero : Kind::Data);
  }
}

TEST_F(NbdStatus, HoldsOnlySoMuchOfALongAnswer) {
  // As many extents for each context; the shorter ones of the bitmap say how far the answer reaches.
  StatusEntries base(20000, {1024, 0}), bitmap(20000, {512, kDirty});
  for (std::size_t i = 0; i < bitmap.size(); i += 2) bitmap[i].second = 0;
  answer_with(base, bitmap);
  server.offer.size = 1024 * base.size();
  const std::vector<ExportStatus> said = status(guest_range(0, server.offer.size));
  constexpr std::size_t kHeld = 16384;
  ASSERT_EQ(said.size(), kHeld);
  for (std::size_t i = 0; i < kHeld; ++i)
    EXPECT_EQ(said[i], piece(i * 512, (i + 1) * 512, false, i % 2 != 0));
}

TEST_F(NbdStatus, AsksAgainForWhatIsNotHeld) {
  // Every other sector is zero, and all of it is said at once.
  server.offer.size = 40000 * 512;
  server.on_status = [](Wire& wire, const Request& request) {
    StatusEntries base;
    for (std::uint64_t at = request.offset; at < request.offset + request.length; at += 512) {
      base.emplace_back(512, at % 1024 == 0 ? kZero : 0);
    }
    wire.status(request, kBase, base, Last::No);
    wire.status(request, kBitmap, {{request.length, kDirty}}, Last::Yes);
  };
  NbdExport live(target_of(server.uri()), kByBitmap);
  const Extents extents = collect(extents_of(live));
  ASSERT_EQ(extents.size(), 40000U);
  for (std::size_t i = 0; i < extents.size(); ++i) {
    EXPECT_EQ(extents[i], (Extent{guest_range(i * 512, 512), i % 2 == 0 ? Kind::Zero : Kind::Data}));
  }
}

TEST_F(NbdStatus, RefusesAnExtentOfNoLength) {
  answer_with({{0, 0}, {kMiB, 0}}, {{kMiB, kDirty}});
  EXPECT_THAT(asking(), Fails(Outcome::Io, "an extent of length 0"));
}

TEST_F(NbdStatus, RefusesALaterExtentOfNoLength) {
  answer_with({{kMiB, 0}}, {{512, kDirty}, {0, 0}, {kMiB - 512, 0}});
  EXPECT_THAT(asking(), Fails(Outcome::Io, "an extent of length 0"));
}

TEST_F(NbdStatus, RefusesAnAnswerWithoutOneOfTheContexts) {
  server.on_status = [](Wire& wire, const Request& request) {
    wire.status(request, kBase, {{kMiB, 0}}, Last::Yes);
  };
  EXPECT_THAT(asking(), Fails(Outcome::Io, "nothing for qemu:dirty-bitmap:b"));
}

TEST_F(NbdStatus, RefusesAnAnswerWithoutAnyContext) {
  server.on_status = [](Wire& wire, const Request& request) { wire.done(request); };
  EXPECT_THAT(asking(), Fails(Outcome::Io, "nothing for base:allocation"));
}

TEST_F(NbdStatus, RefusesAContextThatComesTwice) {
  server.on_status = [](Wire& wire, const Request& request) {
    wire.status(request, kBase, {{kMiB, kZero}}, Last::No);
    wire.status(request, kBitmap, {{kMiB, kDirty}}, Last::No);
    wire.status(request, kBase, {{kMiB, 0}}, Last::Yes);
  };
  EXPECT_THAT(asking(), Fails(Outcome::Io, "same context twice"));
}

TEST_F(NbdStatus, IgnoresAContextThatWasNotRequested) {
  server.on_status = [](Wire& wire, const Request& request) {
    wire.status(request, 77, {{0, kZero}}, Last::No);
    wire.status(request, kBitmap, {{kMiB, 0}}, Last::No);
    wire.status(request, kBase, {{kMiB, 0}}, Last::Yes);
  };
  EXPECT_THAT(status(guest_range(0, kMiB)), ElementsAre(piece(0, kMiB, false, false)));
}

TEST_F(NbdStatus, DoesNotTakeAnotherContextForTheOneAskedFor) {
  server.on_status = [](Wire& wire, const Request& request) {
    wire.status(request, 77, {{kMiB, 0}}, Last::No);
    wire.status(request, kBase, {{kMiB, 0}}, Last::Yes);
  };
  EXPECT_THAT(asking(), Fails(Outcome::Io, "nothing for qemu:dirty-bitmap:b"));
}

TEST_F(NbdStatus, PassesTheServersErrorOn) {
  server.on_status = [](Wire& wire, const Request& request) {
    wire.status(request, kBase, {{kMiB, kZero}}, Last::No);
    wire.status(request, kBitmap, {{kMiB, 0}}, Last::No);
    wire.error(request, 5, Last::Yes);
  };
  EXPECT_THAT(asking(), Fails(Outcome::Io, "block status of [0x0, 0x100000)"));
}

// What follows makes libnbd give the connection up. The control connection is lost then, and the server
// answers: it may be another job.

TEST_F(NbdStatus, IsInconclusiveAfterAnEmptyList) {
  answer_with({}, {});
  EXPECT_THAT(asking(), Fails(Outcome::Inconclusive, "start over"));
}

TEST_F(NbdStatus, IsInconclusiveAfterAWrongCookie) {
  server.on_status = [](Wire& wire, Request request) {
    ++request.cookie;
    wire.status(request, kBase, {{kMiB, 0}}, Last::Yes);
  };
  EXPECT_THAT(asking(), Fails(Outcome::Inconclusive, "start over"));
}

TEST_F(NbdStatus, IsInconclusiveAfterDataInPlaceOfStatus) {
  server.on_status = [](Wire& wire, const Request& request) {
    wire.data(request, request.offset, Bytes(512), Last::Yes);
  };
  EXPECT_THAT(asking(), Fails(Outcome::Inconclusive, "start over"));
}

TEST_F(NbdStatus, IsInconclusiveWhenTheConnectionDropsInMidReply) {
  server.on_status = [](Wire& wire, const Request& request) {
    wire.status(request, kBase, {{kMiB, kZero}}, Last::No);
    wire.send(Packet().u32(0x668e33ef).u16(1));  // the beginning of a chunk
    wire.hang_up();
  };
  EXPECT_THAT(asking(), Fails(Outcome::Inconclusive, "start over"));
}

TEST_F(NbdStatus, FailsWhenTheServerGoesAway) {
  server.adapt = [](Offer& offer, unsigned connection) {
    if (connection > 0) offer.greeting = Offer::Greeting::Hangup;
  };
  server.on_status = [](Wire& wire, const Request&) { wire.hang_up(); };
  EXPECT_THAT(asking(), Fails(Outcome::Io, "the server cannot be reached any more"));
}

TEST_F(NbdStatus, GivesUpOnASilentServer) {
  // Since it replies to others, it is not another job.
  server.on_status = [](Wire& wire, const Request& request) {
    wire.status(request, kBase, {{kMiB, kZero}}, Last::No);  // and no more
  };
  NbdExport live(target_of(server.uri(), kSoon), kByBitmap);
  EXPECT_THAT([&] { live.status(guest_range(0, kMiB)); },
              Fails(Outcome::Io, "block status of [0x0, 0x100000): no answer within 300 ms (timed out"));
}

TEST_F(NbdStatus, TreatsEverythingAsDataWhereTheServerHasNoContexts) {
  server.offer.structured = false;
  NbdExport live(target_of(server.uri()), {});
  EXPECT_FALSE(live.has_allocation());
  EXPECT_THAT(live.offered_bitmaps(), IsEmpty());
  EXPECT_THAT(live.status(guest_range(0, kMiB)), ElementsAre(piece(0, kMiB, false, true)));
}

// A pull job that is served without filters can say ZERO for a block whose old data is just being saved: the
// guest has zeroed the live disk between two steps of the server. A second query shows the data.
class NbdZeroRace : public NbdStatus {
 protected:
  // The first query is answered with `base` and `bitmap`, later ones correctly: data, clean.
  void first_answer(const StatusEntries& base, const StatusEntries& bitmap) {
    server.on_status = server.once([=](Wire& wire, const Request& request) {
      wire.status(request, kBase, base, Last::No);
      wire.status(request, kBitmap, bitmap, Last::Yes);
    });
  }
};

TEST_F(NbdZeroRace, BelievesAZeroOnlyWhenItIsSaidTwice) {
  first_answer({{kMiB, kHoleZero}}, {{kMiB, kDirty}});
  NbdExport live(target_of(server.uri()), kByBitmap);
  EXPECT_THAT(live.status(guest_range(0, kMiB)), ElementsAre(piece(0, kMiB, false, true)));
}

TEST_F(NbdZeroRace, BelievesTheRestOfTheAnswer) {
  answer_with({{512, kHoleZero}, {512, 0}}, {{512, kDirty}, {512, 0}});
  EXPECT_THAT(status(guest_range(0, 1024)),
              ElementsAre(piece(0, 512, true, true), piece(512, 1024, false, false)));
}

TEST_F(NbdZeroRace, AsksForAllThatTheFirstAnswerCovered) {
  // The second question is answered in pieces, and one of the pieces turns out to be data.
  std::atomic<int> asked = 0;
  server.on_status = [&](Wire& wire, const Request& request) {
    const std::uint32_t length = ++asked == 1 ? 4096 : 1024;
    wire.status(request, kBase, {{length, asked == 3 ? 0 : kZero}}, Last::No);
    wire.status(request, kBitmap, {{kMiB, kDirty}}, Last::Yes);
  };
  EXPECT_THAT(
      status(guest_range(0, kMiB)),
      ElementsAre(piece(0, 1024, true, true), piece(1024, 2048, false, true), piece(2048, 4096, true, true)));
  EXPECT_EQ(asked, 5);
}

TEST_F(NbdZeroRace, IsDirtyWhereEitherAnswerSaysSo) {
  first_answer({{1024, kZero}, {1024, 0}}, {{512, kDirty}, {2048, 0}});
  EXPECT_THAT(status(guest_range(0, 2048)),
              ElementsAre(piece(0, 512, false, true), piece(512, 2048, false, false)));
}

TEST_F(NbdZeroRace, APullReadsWhatIsNoLongerZero) {
  first_answer({{kMiB, kHoleZero}}, {{kMiB, kDirty}});
  const Folder folder;
  const std::string out = folder / "out.raw";
  const auto options =
      parsed<PullOptions>({server.uri(), "-o", out, "--format", "raw", "--progress", "none"});
  Console console("pull", false, ProgressStyle::None);
  EXPECT_EQ(pull(options, console), Outcome::Done);
  EXPECT_EQ(read_file(out), server.disk());
}

// Changes: bitmaps and allocation depth.
class NbdChanges : public NbdStatus {
 protected:
  NbdChanges() {
    server.offer.contexts = {"qemu:dirty-bitmap:one", "qemu:allocation-depth", kBaseName,
                             "qemu:dirty-bitmap:two"};
  }
  auto opening(const Changes& changes) {
    return [this, changes] { NbdExport(target_of(server.uri()), changes); };
  }
};

TEST_F(NbdChanges, WantsOneOfSeveralBitmapsNamed) {
  EXPECT_THAT(opening(kByBitmap), Fails(Outcome::Usage, "on offer: one, two"));
}

TEST_F(NbdChanges, RefusesABitmapThatIsNotOnOffer) {
  EXPECT_THAT(opening({Changes::Source::DirtyBitmap, "three"}),
              Fails(Outcome::Usage, "no dirty bitmap three (on offer: one, two)"));
}

TEST_F(NbdChanges, RefusesWhenThereIsNoBitmap) {
  server.offer.contexts = {kBaseName};
  EXPECT_THAT(opening(kByBitmap), Fails(Outcome::Usage, "no dirty bitmap"));
  EXPECT_THAT(opening({Changes::Source::DirtyBitmap, "one"}),
              Fails(Outcome::Usage, "no dirty bitmap one (none is on offer)"));
}

TEST_F(NbdChanges, RefusesWhenThereAreNoContextsAtAll) {
  server.offer.structured = false;
  EXPECT_THAT(opening(kByBitmap), Fails(Outcome::Usage, "no dirty bitmap"));
}

TEST_F(NbdChanges, RefusesWhenThereIsNoAllocationDepth) {
  server.offer.contexts = {kBaseName};
  EXPECT_THAT(opening({Changes::Source::AllocationDepth, {}}),
              Fails(Outcome::Usage, "qemu:allocation-depth"));
}

TEST_F(NbdChanges, FailsWhenTheServerTakesItsOfferBack) {
  server.offer.refused = "qemu:dirty-bitmap:two";
  EXPECT_THAT(opening({Changes::Source::DirtyBitmap, "two"}),
              Fails(Outcome::Io, "offered qemu:dirty-bitmap:two and then refused it"));
}

TEST_F(NbdChanges, UsesTheOneThatIsNamed) {
  // Every context says of itself what its id is: the flags of the second bitmap have to be taken.
  server.on_status = [](Wire& wire, const Request& request) {
    wire.status(request, 1, {{kMiB, 0}}, Last::No);
    wire.status(request, 2, {{kMiB, 2}}, Last::No);
    wire.status(request, 3, {{kMiB, 0}}, Last::No);
    wire.status(request, 4, {{512, kDirty}, {kMiB, 0}}, Last::Yes);
  };
  NbdExport live(target_of(server.uri()), {Changes::Source::DirtyBitmap, "two"});
  EXPECT_EQ(live.bitmap(), "two");
  EXPECT_THAT(live.offered_bitmaps(), ElementsAre("one", "two"));
  EXPECT_THAT(live.status(guest_range(0, 1024)),
              ElementsAre(piece(0, 512, false, true), piece(512, 1024, false, false)));
}

TEST_F(NbdChanges, ByAllocationDepthOnlyTheActiveLayerIsChanged) {
  server.on_status = [](Wire& wire, const Request& request) {
    wire.status(request, 2, {{512, 0}, {512, 1}, {512, 2}, {512, 3}}, Last::No);
    wire.status(request, 3, {{kMiB, 0}}, Last::Yes);
  };
  NbdExport live(target_of(server.uri()), {Changes::Source::AllocationDepth, {}});
  EXPECT_THAT(live.status(guest_range(0, 2048)),
              ElementsAre(piece(0, 512, false, false), piece(512, 1024, false, true),
                          piece(1024, 1536, false, false), piece(1536, 2048, false, false)));
}

TEST_F(NbdChanges, IgnoresBitmapsForAFullImage) {
  NbdExport live(target_of(server.uri()), {});
  EXPECT_EQ(live.bitmap(), "");
  EXPECT_THAT(live.extents(guest_range(0, kMiB)), ElementsAre(Extent{guest_range(0, kMiB), Kind::Data}));
}

}  // namespace
}  // namespace qchain::tests
