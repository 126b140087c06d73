// Reading from a server that answers wrongly, in part, late or not at all: the right bytes, or an
// error.
#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "extent/nbd_export.h"
#include "tests/nbd/fake_server.h"

namespace qchain::tests {
namespace {

constexpr std::uint64_t kRequest = 256 * kKiB;  // the default of NbdTarget

class NbdRead : public ::testing::Test {
 protected:
  NbdRead() : server(disk_bytes(kMiB)) {}

  // Opens the export and one reader, whose connection is the server's second one.
  void open(std::chrono::milliseconds timeout = std::chrono::seconds(5)) {
    live = std::make_unique<NbdExport>(target_of(server.uri(), timeout), Changes{});
    reader = live->open_reader();
  }
  auto reading(std::uint64_t begin, std::uint64_t length) {
    return [=, this] { read(*reader, begin, length); };
  }
  void expect_right(std::uint64_t begin, std::uint64_t length) {
    EXPECT_EQ(read(*reader, begin, length), slice(server.disk(), begin, length));
  }
  // Every read that touches one of `ranges` fails with EIO.
  void make_unreadable(std::vector<GuestRange> ranges) {
    server.on_read = [=, this](Wire& wire, const Request& request) {
      const GuestRange asked = guest_range(request.offset, request.length);
      const bool bad = std::ranges::any_of(
          ranges, [&](const GuestRange& range) { return !intersect(asked, range).empty(); });
      bad ? wire.error(request, EIO, Last::Yes) : server.answer(wire, request);
    };
  }

  FakeServer server;
  std::unique_ptr<NbdExport> live;
  std::unique_ptr<Reader> reader;
};

// Right replies of unusual form.

TEST_F(NbdRead, TakesChunksInAnyOrderAndHoles) {
  server.offer.df = false;
  server.on_read = [this](Wire& wire, const Request& r) {
    wire.data(r, r.offset + 1024, slice(server.disk(), r.offset + 1024, 512), Last::No);
    wire.hole(r, r.offset + 512, 512, Last::No);
    wire.data(r, r.offset, slice(server.disk(), r.offset, 512), Last::No);
    wire.done(r);
  };
  open();
  Bytes expected = slice(server.disk(), 0, 1536);
  std::fill_n(expected.begin() + 512, 512, std::byte{0});
  EXPECT_EQ(read(*reader, 0, 1536), expected);
}

// The pieces that a reply comes in.
class NbdPieces : public NbdRead {
 protected:
  // Has every request answered as `send` does it, and reads one.
  void expect_taken(FakeServer::Handler send) {
    std::atomic<int> requests = 0;
    server.offer.df = false;
    server.on_read = [&](Wire& wire, const Request& request) {
      ++requests;
      send(wire, request);
      wire.done(request);
    };
    open();
    expect_right(0, kRequest);
    EXPECT_EQ(requests, 1);
  }
  void send_piece(Wire& wire, const Request& request, std::uint64_t at, std::uint64_t length) {
    wire.data(request, at, slice(server.disk(), at, length), Last::No);
  }
};

TEST_F(NbdPieces, AreTakenWhereTheyFollowEachOther) {
  // However many there are.
  expect_taken([this](Wire& wire, const Request& r) {
    for (std::uint64_t at = 0; at < r.length; at += 32) send_piece(wire, r, at, 32);
  });
}

TEST_F(NbdPieces, AreTakenWhereTheyDoNotFollowEachOther) {
  // As many as are held; see also MorePiecesThanAreHeld.
  expect_taken([this](Wire& wire, const Request& r) {
    for (std::uint64_t at = r.length; at > 0; at -= 64) send_piece(wire, r, at - 64, 64);
  });
}

TEST_F(NbdPieces, OfNoLengthDoNotCount) {
  expect_taken([this](Wire& wire, const Request& r) {
    send_piece(wire, r, 512, r.length - 512);
    for (std::uint64_t i = 0; i < 10000; ++i) wire.hole(r, i * 16, 0, Last::No);
    send_piece(wire, r, 1024, 0);
    send_piece(wire, r, 0, 512);
  });
}

TEST_F(NbdRead, TakesRepliesInAnyOrder) {
  // Every fourth request is answered, and the three before it after that.
  std::vector<Request> held;
  server.on_read = [&](Wire& wire, const Request& request) {
    held.push_back(request);
    if (held.size() < 4) return;
    // With the last answer the test is over, and `held` with it.
    const std::vector<Request> all = std::exchange(held, {});
    for (auto r = all.rbegin(); r != all.rend(); ++r) server.answer(wire, *r);
  };
  open();
  expect_right(0, kMiB);
}

TEST_F(NbdRead, ReadsWithoutStructuredReplies) {
  server.offer.structured = false;
  open();
  expect_right(0, kMiB);
}

TEST_F(NbdRead, AsksForUnfragmentedRepliesWhereItCan) {
  std::atomic<int> fragmentable = 0;
  server.on_read = [&](Wire& wire, const Request& request) {
    constexpr std::uint16_t kDf = 1U << 2U;
    if ((request.flags & kDf) == 0) ++fragmentable;
    server.answer(wire, request);
  };
  open();
  expect_right(0, kMiB);
  EXPECT_EQ(fragmentable, 0);
}

// Requests.

TEST_F(NbdRead, KeepsManyRequestsInFlightButNotMore) {
  // There is an answer when all that may be in flight has come, and a while has passed.
  NbdTarget target = target_of(server.uri());
  target.requests_in_flight = 5;
  target.request_size = 4096;
  std::mutex mutex;
  std::vector<Request> held;
  std::size_t most = 0;
  std::vector<std::jthread> later;
  server.on_read = [&](Wire& wire, const Request& request) {
    const std::lock_guard lock(mutex);
    held.push_back(request);
    most = std::max(most, held.size());
    if (held.size() != 5) return;
    later.emplace_back([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      const std::lock_guard lock_again(mutex);
      for (const Request& r : held) server.answer(wire, r);
      held.clear();
    });
  };
  NbdExport five(target, {});
  const auto own = five.open_reader();
  EXPECT_EQ(read(*own, 0, 20 * 4096), slice(server.disk(), 0, 20 * 4096));
  EXPECT_EQ(most, 5U);
}

TEST_F(NbdRead, KeepsToTheBlockSizesOfTheServer) {
  server.offer.minimum_block = 4096;
  server.offer.maximum_block = 64 * kKiB;
  std::atomic<int> wrong = 0;
  server.on_read = [&](Wire& wire, const Request& request) {
    if (request.offset % 4096 != 0 || request.length % 4096 != 0 || request.length > 64 * kKiB) ++wrong;
    server.answer(wire, request);
  };
  open();
  expect_right(0, kMiB);
  expect_right(100, 50);
  expect_right(4095, 2);
  expect_right(5000, 300000);
  expect_right(kMiB - 1, 1);
  EXPECT_NO_THROW(live->confirm());
  EXPECT_EQ(wrong, 0);
}

TEST_F(NbdRead, AsksForStatusInTheBlockSizesOfTheServer) {
  server.offer.minimum_block = 4096;
  std::atomic<int> wrong = 0;
  server.on_status = [&](Wire& wire, const Request& request) {
    if (request.offset % 4096 != 0 || request.length % 4096 != 0) ++wrong;
    server.answer(wire, request);
  };
  open();
  const auto said = live->status(guest_range(100, 50));
  EXPECT_EQ(said.front().range, guest_range(100, 50));
  EXPECT_EQ(wrong, 0);
}

// Errors.

TEST_F(NbdRead, NamesExactlyTheBlocksThatCannotBeRead) {
  make_unreadable({guest_range(0x12A00, 3 * 512)});
  open();
  EXPECT_THAT(reading(0, kMiB), Fails(Outcome::Io, "cannot read bytes [0x12a00, 0x13000): "));
  expect_right(0, 0x12A00);
  expect_right(0x13000, kMiB - 0x13000);
  EXPECT_NO_THROW(live->confirm());
}

TEST_F(NbdRead, NamesTheFirstOfSeveralRanges) {
  make_unreadable({guest_range(0xC0000, 512), guest_range(0x40000, 512)});
  open();
  EXPECT_THAT(reading(0, kMiB), Fails(Outcome::Io, "cannot read bytes [0x40000, 0x40200) and others"));
}

TEST_F(NbdRead, NamesTheBlockForAReadThatIsNotAligned) {
  // Whatever part of it was asked for: the blocks are those of the disk, not of the request.
  make_unreadable({guest_range(512, 512)});
  open();
  EXPECT_THAT(reading(100, 4000), Fails(Outcome::Io, "cannot read bytes [0x200, 0x400): "));
}

TEST_F(NbdRead, NamesTheBytesWhereTheServerCountsInBytes) {
  server.offer.minimum_block = 1;
  make_unreadable({guest_range(0x1000, 512)});
  open();
  EXPECT_THAT(reading(0, kMiB), Fails(Outcome::Io, "cannot read bytes [0x1000, 0x1200): "));
}

TEST_F(NbdRead, GivesUpSoonWhereNothingCanBeRead) {
  // QEMU advertises a block size of one byte. It is not asked for each of them.
  server.offer.minimum_block = 1;
  std::atomic<int> requests = 0;
  server.on_read = [&](Wire& wire, const Request& request) {
    ++requests;
    wire.error(request, EIO, Last::Yes);
  };
  open();
  EXPECT_THAT(reading(0, 512 * kKiB), Fails(Outcome::Io, "cannot read bytes [0x0, "));
  EXPECT_LT(requests, 1000);
}

TEST_F(NbdRead, RecoversFromAnErrorThatDoesNotLast) {
  server.on_read =
      server.once([](Wire& wire, const Request& request) { wire.error(request, EIO, Last::Yes); });
  open();
  expect_right(0, kMiB);
}

TEST_F(NbdRead, RecoversFromAnErrorThatDoesNotLastInTheSmallestRequest) {
  server.on_read =
      server.once([](Wire& wire, const Request& request) { wire.error(request, EIO, Last::Yes); });
  open();
  expect_right(512, 512);
}

TEST_F(NbdRead, NamesWhatIsAlwaysShort) {
  server.on_read = [](Wire& wire, const Request& r) {
    wire.data(r, r.offset, Bytes(r.length - 1), Last::Yes);
  };
  open();
  EXPECT_THAT(reading(8192, 4096), Fails(Outcome::Io, "cannot read bytes [0x2000, 0x3000): "));
}

TEST_F(NbdRead, RemembersWhatCouldNotBeReadWhenTheConnectionIsLost) {
  // The block at 0 cannot be read; the rest of the batch fails first, and then drops the
  // connection.
  std::atomic<int> elsewhere = 0;
  server.on_read = [&](Wire& wire, const Request& request) {
    if (request.offset == 0) return wire.error(request, EIO, Last::Yes);
    ++elsewhere;
    if (elsewhere == 1) return wire.error(request, EIO, Last::Yes);
    if (elsewhere == 2) wire.hang_up();
    server.answer(wire, request);
  };
  open();
  Bytes a(512), b(8192);
  const std::vector<ReadRequest> batch{{GuestOffset(0), a}, {GuestOffset(65536), b}};
  EXPECT_THAT([&] { reader->read(batch); }, Fails(Outcome::Io, "cannot read bytes [0x0, 0x200): "));
  EXPECT_EQ(b, slice(server.disk(), 65536, 8192));
}

// Loss of the connection.

TEST_F(NbdRead, GoesOnAfterEveryLossAsLongAsThereIsProgress) {
  // Each connection but the first answers one request of the eight and drops.
  std::atomic<unsigned> last_answered = 0;
  server.on_read = [&](Wire& wire, const Request& request) {
    if (request.connection != 0 && request.length > 512 &&
        last_answered.exchange(request.connection) == request.connection) {
      wire.hang_up();
    }
    server.answer(wire, request);
  };
  NbdTarget target = target_of(server.uri());
  target.request_size = kMiB / 8;
  NbdExport eight(target, {});
  const auto own = eight.open_reader();
  EXPECT_EQ(read(*own, 0, kMiB), server.disk());
  EXPECT_GE(server.connections(), 1U + 8);
}

TEST_F(NbdRead, GivesUpWhenEveryConnectionIsLost) {
  server.on_read = [](Wire& wire, const Request&) { wire.hang_up(); };
  open();
  EXPECT_THAT(reading(4096, 4096),
              Fails(Outcome::Io, "connection lost while reading [0x1000, 0x2000), 5 times"));
  EXPECT_EQ(server.connections(), 1U + 5);
}

TEST_F(NbdRead, ReadsAgainWhatASilentServerOwes) {
  server.on_read = server.once([](Wire& wire, const Request& r) {
    wire.data(r, r.offset, Bytes(512), Last::No);  // and no more
  });
  open(kSoon);
  const Stopwatch stopwatch;
  expect_right(0, kMiB);
  EXPECT_GE(stopwatch.seconds(), 0.3);
  EXPECT_LT(stopwatch.seconds(), 5);
}

TEST_F(NbdRead, IsInconclusiveWhenTheSizeHasChanged) {
  server.adapt = [](Offer& offer, unsigned connection) {
    if (connection >= 2) offer.size += 512;
  };
  server.on_read = [](Wire& wire, const Request&) { wire.hang_up(); };
  open();
  EXPECT_THAT(reading(0, 512), Fails(Outcome::Inconclusive, "the export is not the same one"));
}

// A reader without a connection of its own reads through the control connection, which cannot be replaced.
class NbdSharedConnection : public NbdRead {
 protected:
  NbdSharedConnection() { server.offer.multi_conn = false; }
};

TEST_F(NbdSharedConnection, IsInconclusiveWhenTheConnectionIsLost) {
  server.on_read = [](Wire& wire, const Request&) { wire.hang_up(); };
  open();
  EXPECT_THAT(reading(0, 512), Fails(Outcome::Inconclusive, "start over"));
}

TEST_F(NbdSharedConnection, FailsWhenTheServerIsGone) {
  open();
  server.stop();
  EXPECT_THAT(reading(0, 512), Fails(Outcome::Io, "the server cannot be reached any more"));
}

TEST_F(NbdSharedConnection, IsGivenUpWhenItIsSilent) {
  server.on_read = [](Wire&, const Request&) {};
  open(kSoon);
  EXPECT_THAT(reading(0, 512), Fails(Outcome::Io, "no answer within 300 ms (timed out"));
}

TEST_F(NbdSharedConnection, DropsAnAnswerThatComesTooLate) {
  // The buffer of the read is gone when the answer comes, together with that to the next question.
  std::mutex mutex;
  std::optional<Request> owed;
  server.on_read = [&](Wire&, const Request& request) {
    const std::lock_guard lock(mutex);
    owed = request;
  };
  server.on_status = [&](Wire& wire, const Request& request) {
    const std::lock_guard lock(mutex);
    if (owed) server.answer(wire, *owed);
    server.answer(wire, request);
  };
  open(kSoon);
  EXPECT_THAT(reading(0, kRequest), Fails(Outcome::Io, "timed out"));
  EXPECT_THAT([&] { live->status(guest_range(0, kMiB)); }, Fails(Outcome::Io, "timed out"));
}

TEST_F(NbdSharedConnection, IsForTwoThreads) {
  // One reads, and the other asks a little later, and is left without an answer. Under TSan this can show
  // whether the one may look at the connection while the other waits for it.
  server.on_status = [](Wire&, const Request&) {};
  open(kSoon);
  std::jthread other([this] { EXPECT_NO_THROW(expect_right(0, kMiB)); });
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_THAT([&] { live->status(guest_range(0, kMiB)); }, Fails(Outcome::Io, "timed out"));
}

}  // namespace
}  // namespace qchain::tests
