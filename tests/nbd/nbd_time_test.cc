// Slow servers: one that takes too long for an answer is given up, however it spends the time; one that is
// slow, and answers each request in time, is not.
#include <gmock/gmock.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "extent/nbd_export.h"
#include "tests/nbd/fake_server.h"

namespace qchain::tests {
namespace {

using std::chrono::milliseconds;
using Step = Offer::Step;

class NbdTime : public ::testing::Test {
 protected:
  NbdTime() : server(disk_bytes(kMiB)) { server.offer.minimum_block = 1; }

  FakeServer server;
};

// A byte now and then is no answer: all of one takes longer than the time-out here.

TEST_F(NbdTime, IsUpWhereTheHandshakeDribbles) {
  for (const auto& [step, words] : {std::pair{Step::Greeting, "cannot connect"},
                                    {Step::List, "cannot list meta contexts"},
                                    {Step::Go, "cannot open the export"}}) {
    server.offer.dribbling = step;
    const Stopwatch stopwatch;
    EXPECT_THAT([&] { NbdExport(target_of(server.uri(), kSoon), {}); },
                Fails(Outcome::Io, std::string(words) + ": no answer within 300 ms"));
    EXPECT_LT(stopwatch.seconds(), 3);
  }
}

TEST_F(NbdTime, IsUpWhereAStatusReplyDribbles) {
  server.on_status = [this](Wire& wire, const Request& request) {
    wire.dribble();
    server.answer(wire, request);
  };
  server.adapt = [](Offer& offer, unsigned connection) {
    if (connection > 0) offer.greeting = Offer::Greeting::Hangup;
  };
  NbdExport live(target_of(server.uri(), kSoon), {});
  const Stopwatch stopwatch;
  EXPECT_THAT([&] { live.status(guest_range(0, kMiB)); }, Fails(Outcome::Io, "no answer within 300 ms"));
  EXPECT_LT(stopwatch.seconds(), 3);
}

TEST_F(NbdTime, IsUpWhereAReadReplyDribbles) {
  // The bytes come over another connection then.
  for (const bool structured : {true, false}) {
    FakeServer slow(disk_bytes(4096));
    slow.offer.structured = structured;
    slow.offer.minimum_block = 1;
    slow.on_read = slow.once([&](Wire& wire, const Request& request) {
      wire.dribble();
      slow.answer(wire, request);
    });
    NbdExport live(target_of(slow.uri(), kSoon), {});
    const auto reader = live.open_reader();
    const Stopwatch stopwatch;
    EXPECT_EQ(read(*reader, 0, 32), slice(slow.disk(), 0, 32));
    EXPECT_EQ(slow.connections(), 3U);
    EXPECT_GE(stopwatch.seconds(), 0.3);
    EXPECT_LT(stopwatch.seconds(), 3);
  }
}

TEST_F(NbdTime, IsUpWhereOnlyPiecesOfNoLengthCome) {
  server.offer.df = false;
  server.on_read = server.once([this](Wire& wire, const Request& request) {
    for (int i = 0; i < 100; ++i) {
      wire.hole(request, request.offset, 0, Last::No);
      wire.wait(milliseconds(10));
    }
    server.answer(wire, request);
  });
  NbdExport live(target_of(server.uri(), kSoon), {});
  const auto reader = live.open_reader();
  EXPECT_EQ(read(*reader, 0, 4096), slice(server.disk(), 0, 4096));
  EXPECT_EQ(server.connections(), 3U);
}

// Five answers that take a fourth of the time-out each.

class NbdSlow : public NbdTime {
 protected:
  static constexpr milliseconds kTimeout{800}, kAnswer{200};
  static constexpr unsigned kAnswers = 5;

  // Answers honestly, in a while.
  FakeServer::Handler slowly() {
    return [this](Wire& wire, const Request& request) {
      wire.wait(kAnswer);
      server.answer(wire, request);
    };
  }
};

TEST_F(NbdSlow, HandshakesAreWaitedFor) {
  server.offer.thinking = kAnswer;
  const Stopwatch stopwatch;
  NbdExport live(target_of(server.uri(), kTimeout), {});
  EXPECT_GE(stopwatch.seconds(), 0.8);
}

TEST_F(NbdSlow, StatusIsWaitedFor) {
  server.on_status = slowly();
  NbdExport live(target_of(server.uri(), kTimeout), {});
  for (unsigned i = 0; i < kAnswers; ++i) EXPECT_NO_THROW(live.status(guest_range(0, kMiB)));
}

TEST_F(NbdSlow, RepliesAreWaitedFor) {
  server.on_read = slowly();
  NbdTarget target = target_of(server.uri(), kTimeout);
  target.request_size = 4096;
  NbdExport live(target, {});
  const auto reader = live.open_reader();
  EXPECT_EQ(read(*reader, 0, kAnswers * 4096), slice(server.disk(), 0, kAnswers * 4096));
  EXPECT_EQ(server.connections(), 2U);
}

}  // namespace
}  // namespace qchain::tests
