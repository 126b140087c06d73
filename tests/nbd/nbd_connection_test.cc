// Opening an export, its limits, its connections, and whether it is still the same one at the end.
#include <gmock/gmock.h>

#include <atomic>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "cli/pull.h"
#include "extent/nbd_export.h"
#include "tests/nbd/fake_server.h"
#include "tests/parsed.h"

namespace qchain::tests {
namespace {

class NbdOpening : public ::testing::Test {
 protected:
  NbdOpening() : server(disk_bytes(kMiB)) {}

  auto opening(std::chrono::milliseconds timeout = std::chrono::seconds(5)) {
    return [this, timeout] { NbdExport(target_of(server.uri(), timeout), {}); };
  }

  FakeServer server;
};

TEST_F(NbdOpening, FailsWhereNothingListens) {
  server.stop();
  EXPECT_THAT(opening(), Fails(Outcome::Io, server.uri()));
}

TEST_F(NbdOpening, FailsWhereNoSocketIs) {
  EXPECT_THAT([] { NbdExport(target_of(unix_uri("no-such-folder/s")), {}); },
              Fails(Outcome::Io, "no-such-folder/s"));
}

TEST_F(NbdOpening, FailsAtASilentServer) {
  server.offer.greeting = Offer::Greeting::Silent;
  const Stopwatch stopwatch;
  EXPECT_THAT(opening(kSoon), Fails(Outcome::Io, "no answer within 300 ms"));
  EXPECT_LT(stopwatch.seconds(), 3);
}

TEST_F(NbdOpening, FailsWhereTheServerHangsUp) {
  server.offer.greeting = Offer::Greeting::Hangup;
  EXPECT_THAT(opening(), Fails(Outcome::Io, "cannot connect"));
}

TEST_F(NbdOpening, FailsWhereSomethingElseListens) {
  server.offer.greeting = Offer::Greeting::Garbage;
  EXPECT_THAT(opening(), Fails(Outcome::Io, "cannot connect"));
}

TEST_F(NbdOpening, FailsWhereTheSizeIsAbsurd) {
  server.offer.size = ~std::uint64_t{0};
  EXPECT_THAT(opening(), Fails(Outcome::Io, "size"));
}

TEST_F(NbdOpening, FailsWhereTheTailCannotBeRead) {
  server.offer.minimum_block = 4096;
  server.offer.size = kMiB + 1000;
  EXPECT_THAT(opening(), Fails(Outcome::Io, "the last 1000 bytes cannot be read"));
}

TEST_F(NbdOpening, FailsWhereTheServerListsTooManyContexts) {
  for (int i = 1; i < 1024; ++i) server.offer.contexts.push_back("qemu:dirty-bitmap:" + std::to_string(i));
  EXPECT_NO_THROW(opening()());
  server.offer.contexts.push_back("qemu:dirty-bitmap:1024");
  EXPECT_THAT(opening(), Fails(Outcome::Io, "lists more than 1024 meta contexts"));
}

TEST_F(NbdOpening, FailsWhereThereIsNoSuchExport) {
  // With any options. Servers report it only when the export itself is opened.
  server.offer.known = false;
  const auto expect_missing = [this] {
    for (const auto source :
         {Changes::Source::None, Changes::Source::DirtyBitmap, Changes::Source::AllocationDepth}) {
      const Changes changes{source, {}};
      EXPECT_THAT([&] { NbdExport(target_of(server.uri()), changes); },
                  Fails(Outcome::Io, "does not offer this export: No such file"));
    }
  };
  expect_missing();  // with base:allocation on the list
  server.offer.contexts.clear();
  expect_missing();
  server.offer.structured = false;
  expect_missing();
}

TEST_F(NbdOpening, TakesATailOfBytesWhereTheServerDoes) {
  FakeServer odd(disk_bytes(1001));
  for (const std::uint32_t minimum : {0U, 1U}) {
    odd.offer.minimum_block = minimum;
    NbdExport live(target_of(odd.uri()), {});
    EXPECT_EQ(live.size(), 1001U);
    EXPECT_EQ(read_all(live), odd.disk());
    EXPECT_NO_THROW(live.confirm());
  }
}

TEST_F(NbdOpening, ToleratesAMaximumThatIsNotAMultipleOfTheMinimum) {
  server.offer.minimum_block = 4096;
  server.offer.maximum_block = 10000;
  NbdExport live(target_of(server.uri()), {});
  EXPECT_EQ(read_all(live), server.disk());
}

TEST_F(NbdOpening, ReportsWhatTheExportIs) {
  NbdExport live(target_of(server.uri()), {});
  EXPECT_TRUE(live.is_read_only());
  EXPECT_EQ(live.export_name(), "vda");
  std::string uri = server.uri();
  uri.replace(uri.find("vda"), 3, "a%20b%2Fc");
  EXPECT_EQ(NbdExport(target_of(uri), {}).export_name(), "a b/c");
}

TEST_F(NbdOpening, AMalformedUriIsAUsageError) {
  for (const char* const uri : {"nbd:///%zz", "nbd+unix:///vda", "nbd:host", "nbd://host:port/",
                                "nbd+ssh://host/", "nbd://host/?socket=/s"}) {
    EXPECT_THAT([&] { NbdExport(target_of(uri), {}); }, Fails(Outcome::Usage, "malformed NBD URI")) << uri;
  }
}

// The connections of the readers.

// QEMU 7.2 can hang for good when the end of a job meets many negotiations.
TEST_F(NbdOpening, NegotiatesOneConnectionAtATimeAndBriefly) {
  std::atomic<int> now = 0, most = 0;
  server.offer.thinking = std::chrono::milliseconds(5);
  server.offer.opened = [&] { --now; };
  server.adapt = [&](Offer&, unsigned) {
    const int count = ++now;
    for (int seen = most; count > seen && !most.compare_exchange_weak(seen, count);) {
    }
  };
  NbdExport live(target_of(server.uri()), {});
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 8; ++i) threads.emplace_back([&] { EXPECT_NE(live.open_reader(), nullptr); });
  }
  EXPECT_EQ(server.connections(), 9U);
  EXPECT_EQ(most, 1);
  EXPECT_EQ(server.context_lists(), 1U) << "further readers need no contexts";
}

TEST_F(NbdOpening, GivesReadersConnectionsOfTheirOwn) {
  NbdExport live(target_of(server.uri()), {});
  const auto a = live.open_reader();
  const auto b = live.open_reader();
  EXPECT_EQ(server.connections(), 3U);
  EXPECT_EQ(read(*a, 0, 4096), slice(server.disk(), 0, 4096));
  EXPECT_EQ(read(*b, 4096, 4096), slice(server.disk(), 4096, 4096));
}

TEST_F(NbdOpening, SharesTheControlConnectionWhereOneConnectionIsAllThereIs) {
  for (const bool multi_conn : {false, true}) {
    FakeServer lonely(disk_bytes(kMiB));
    lonely.offer.multi_conn = multi_conn;
    lonely.adapt = [](Offer& offer, unsigned connection) {
      if (connection > 0) offer.greeting = Offer::Greeting::Hangup;
    };
    NbdExport live(target_of(lonely.uri()), {});
    const auto only = live.open_reader();
    ASSERT_NE(only, nullptr);
    EXPECT_EQ(live.open_reader(), nullptr);
    EXPECT_EQ(read(*only, 0, kMiB), lonely.disk());
    EXPECT_EQ(live.status(guest_range(0, 4096)).size(), 1U);
  }
}

TEST_F(NbdOpening, DoesNotWaitLongWhereASecondConnectionIsNotAnswered) {
  server.offer.multi_conn = false;
  server.adapt = [](Offer& offer, unsigned connection) {
    if (connection > 0) offer.greeting = Offer::Greeting::Silent;
  };
  NbdExport live(target_of(server.uri(), std::chrono::seconds(30)), {});
  const auto only = live.open_reader();
  const Stopwatch stopwatch;
  EXPECT_EQ(live.open_reader(), nullptr);
  EXPECT_LT(stopwatch.seconds(), 3);
  EXPECT_EQ(read(*only, 0, kMiB), server.disk());
}

TEST_F(NbdOpening, DoesNotReadFromAnExportOfAnotherSize) {
  server.adapt = [](Offer& offer, unsigned connection) {
    if (connection > 0) offer.size /= 2;
  };
  std::atomic<int> elsewhere = 0;
  server.on_read = [&](Wire& wire, const Request& request) {
    if (request.connection != 0) ++elsewhere;
    server.answer(wire, request);
  };
  NbdExport live(target_of(server.uri()), {});
  const auto reader = live.open_reader();
  EXPECT_EQ(read(*reader, 0, kMiB), server.disk());
  EXPECT_EQ(live.open_reader(), nullptr);
  EXPECT_EQ(elsewhere, 0);
}

// Is it still the same export?
class NbdConfirm : public NbdOpening {
 protected:
  auto confirming(NbdExport& live) {
    return [&live] { live.confirm(); };
  }
};

TEST_F(NbdConfirm, IsContentWithAControlConnectionThatAnswers) {
  NbdExport live(target_of(server.uri()), {});
  EXPECT_EQ(read_all(live), server.disk());
  EXPECT_NO_THROW(live.confirm());
}

TEST_F(NbdConfirm, AsksTheControlConnection) {
  std::atomic<int> asked = 0;
  server.on_read = [&](Wire& wire, const Request& request) {
    if (request.connection == 0) ++asked;
    server.answer(wire, request);
  };
  NbdExport live(target_of(server.uri()), {});
  live.confirm();
  EXPECT_EQ(asked, 1);
}

TEST_F(NbdConfirm, IsContentWithAnErrorForAnAnswer) {
  server.on_read = [](Wire& wire, const Request& request) { wire.error(request, EIO, Last::Yes); };
  NbdExport live(target_of(server.uri()), {});
  EXPECT_NO_THROW(live.confirm());
}

TEST_F(NbdConfirm, IsInconclusiveWhenTheControlConnectionIsLost) {
  NbdExport live(target_of(server.uri()), {});
  EXPECT_EQ(read_all(live), server.disk());
  server.drop(0);
  EXPECT_THAT(confirming(live), Fails(Outcome::Inconclusive, "start over"));
}

TEST_F(NbdConfirm, IsInconclusiveWhenTheServerHasStopped) {
  NbdExport live(target_of(server.uri()), {});
  server.stop();
  EXPECT_THAT(confirming(live), Fails(Outcome::Inconclusive, "start over"));
}

// qchain gave up by itself: that says nothing about the job.
TEST_F(NbdConfirm, IsAnIoErrorWhenTheServerIsSilent) {
  server.on_read = [](Wire&, const Request&) {};
  NbdExport live(target_of(server.uri(), kSoon), {});
  EXPECT_THAT(confirming(live), Fails(Outcome::Io, "no answer within 300 ms (timed out"));
}

TEST_F(NbdConfirm, LetsTheEndOfAJobShow) {
  // After the last read the job may have ended, with the server still there for a moment.
  NbdExport live(target_of(server.uri()), {});
  const auto reader = live.open_reader();
  const Stopwatch stopwatch;
  read(*reader, 0, 512);
  live.confirm();
  EXPECT_GE(stopwatch.seconds(), 0.1);
}

TEST_F(NbdConfirm, KeepsAPullFromPublishing) {
  const Folder folder;
  for (const char* format : {"raw", "qcow2"}) {
    // The last block of the disk is read, and then the control connection is gone.
    FakeServer ending(disk_bytes(kMiB));
    ending.on_read = [&](Wire& wire, const Request& request) {
      ending.answer(wire, request);
      if (request.offset + request.length == kMiB) ending.drop(0);
    };
    const std::string out = folder / format;
    const auto options =
        parsed<PullOptions>({ending.uri(), "-o", out, "--format", format, "--progress", "none"});
    Console console("pull", false, ProgressStyle::None);
    EXPECT_THAT([&] { pull(options, console); }, Fails(Outcome::Inconclusive, "start over"));
    EXPECT_FALSE(std::filesystem::exists(out));
    EXPECT_FALSE(std::filesystem::exists(out + ".partial"));
  }
}

}  // namespace
}  // namespace qchain::tests
