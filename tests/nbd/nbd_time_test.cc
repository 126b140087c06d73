// Slow servers: one that takes too long for an answer is given up, however it spends the time; one that is
// slow, and answers each request in time, is not.
#include <gmock/gmock.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "extent/nbd_export.h"
#include "extent/time_limit.h"
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

// A reply that arrives byte by byte, and takes longer than the timeout.

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

// A server that sends all the time, and never an answer.

class NbdFlood : public NbdTime {
 protected:
  auto opening() {
    return [this] { NbdExport(target_of(server.uri(), kSoon), {}); };
  }
  // Sends `packet` as long as the client is there.
  static void flood(Wire& wire, const std::function<void()>& send) {
    for (;;) {
      send();
      wire.wait(milliseconds(0));
    }
  }
};

TEST_F(NbdFlood, OfContextsIsGivenUp) {
  server.offer.endless = Step::List;
  const Stopwatch stopwatch;
  EXPECT_THAT(opening(), Fails(Outcome::Io, "cannot list meta contexts: no answer within 300 ms"));
  EXPECT_LT(stopwatch.seconds(), 5);
}

TEST_F(NbdFlood, OfFactsAboutTheExportIsGivenUp) {
  server.offer.endless = Step::Go;
  const Stopwatch stopwatch;
  EXPECT_THAT(opening(), Fails(Outcome::Io, "cannot open the export: no answer within 300 ms"));
  EXPECT_LT(stopwatch.seconds(), 5);
}

TEST_F(NbdFlood, OfEmptyChunksIsGivenUp) {
  server.offer.df = false;
  server.on_read = server.once([](Wire& wire, const Request& request) {
    flood(wire, [&] { wire.hole(request, request.offset, 0, Last::No); });
  });
  NbdExport live(target_of(server.uri(), kSoon), {});
  const auto reader = live.open_reader();
  EXPECT_EQ(read(*reader, 0, 4096), slice(server.disk(), 0, 4096));
  EXPECT_EQ(server.connections(), 3U);
}

TEST_F(NbdFlood, OfStatusChunksIsGivenUp) {
  server.on_status = [](Wire& wire, const Request& request) {
    flood(wire, [&] { wire.status(request, 77, {{512, 0}}, Last::No); });
  };
  NbdExport live(target_of(server.uri(), kSoon), {});
  EXPECT_THAT([&] { live.status(guest_range(0, kMiB)); }, Fails(Outcome::Io, "no answer within 300 ms"));
}

// The limit itself, by a clock of the test's.

TEST(TimeLimitTest, IsOverWhenItsTimeIsOver) {
  const TimeLimit::Clock::time_point begin{};
  TimeLimit limit;
  limit.renew(milliseconds(1500), begin);
  EXPECT_FALSE(limit.is_over(begin + milliseconds(1000)));
  EXPECT_FALSE(limit.is_over(begin + milliseconds(1499)));
  EXPECT_TRUE(limit.is_over(begin + milliseconds(1500)));
  EXPECT_TRUE(limit.is_over(begin + milliseconds(1500))) << "and stays so";
  limit.renew(milliseconds(100), begin + milliseconds(1500));
  EXPECT_FALSE(limit.is_over(begin + milliseconds(1599)));
}

TEST(TimeLimitTest, DoesNotCountTheTimeThatTheProcessWasStopped) {
  const TimeLimit::Clock::time_point begin{};
  TimeLimit limit;
  limit.renew(std::chrono::seconds(30), begin);
  const auto continued = begin + std::chrono::hours(8);
  EXPECT_FALSE(limit.is_over(continued));
  for (int i = 1; i < 29; ++i) EXPECT_FALSE(limit.is_over(continued + std::chrono::seconds(i)));
  EXPECT_TRUE(limit.is_over(continued + std::chrono::seconds(29)));
}

TEST(TimeLimitTest, IsShownInSecondsWherePossible) {
  EXPECT_EQ(to_string(std::chrono::seconds(30)), "30 s");
  EXPECT_EQ(to_string(milliseconds(300)), "300 ms");
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
