// One policy for requests that the server fails: tried again so often, narrowed down, counted.
#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <string>

#include "extent/nbd_export.h"
#include "extent/nbd_export_state.h"
#include "tests/nbd/fake_server.h"

namespace qchain::tests {
namespace {

class NbdRetry : public ::testing::Test {
 protected:
  NbdRetry() : server(disk_bytes(kMiB)) {}

  // Fails with EIO what touches `bad`, and counts.
  void make_unreadable(const GuestRange& bad) {
    server.on_read = [=, this](Wire& wire, const Request& request) {
      if (intersect(guest_range(request.offset, request.length), bad).empty()) {
        return server.answer(wire, request);
      }
      ++failures;
      wire.error(request, EIO, Last::Yes);
    };
  }
  // The error of reading everything.
  static std::string error_of_reading_all(NbdExport& live) {
    try {
      read_all(live);
    } catch (const ReadError& error) {
      return error.what();
    }
    return "nothing";
  }

  FakeServer server;
  std::atomic<unsigned> failures = 0;
};

// Block status.

TEST_F(NbdRetry, ABlockStatusErrorThatDoesNotLastIsRecoveredFrom) {
  server.on_status = [&](Wire& wire, const Request& request) {
    if (++failures < kMaxAttempts) return wire.error(request, EIO, Last::Yes);
    server.answer(wire, request);
  };
  NbdExport live(target_of(server.uri()), {});
  EXPECT_EQ(live.status(guest_range(0, kMiB)).size(), 1U);
  EXPECT_EQ(live.recovered().failed_requests, kMaxAttempts - 1);
  EXPECT_EQ(server.connections(), 1U) << "on the same connection";
}

TEST_F(NbdRetry, ABlockStatusErrorThatLastsIsReportedInTheEnd) {
  server.on_status = [&](Wire& wire, const Request& request) {
    ++failures;
    wire.error(request, EIO, Last::Yes);
  };
  NbdExport live(target_of(server.uri()), {});
  EXPECT_THAT([&] { live.status(guest_range(0, kMiB)); },
              Fails(Outcome::Io, "block status of [0x0, 0x100000)"));
  EXPECT_EQ(failures, kMaxAttempts);
  EXPECT_EQ(live.recovered().failed_requests, 0U);
}

// Reads.

TEST_F(NbdRetry, AReadErrorThatDoesNotLastIsRecoveredFromAndCounted) {
  server.on_read = [&](Wire& wire, const Request& request) {
    if (request.offset == 256 * kKiB && ++failures < 3) return wire.error(request, EIO, Last::Yes);
    server.answer(wire, request);
  };
  NbdExport live(target_of(server.uri()), {});
  EXPECT_EQ(live.recovered().failed_requests, 0U);
  EXPECT_EQ(read_all(live), server.disk());
  EXPECT_EQ(live.recovered().failed_requests, 2U);
  EXPECT_EQ(live.recovered().reconnects, 0U);
}

TEST_F(NbdRetry, ABadSectorIsNamedExactlyAtALowPrice) {
  for (const std::uint64_t at : {0, 0x40000, 0x48200, 0x5AA00, 0xFFE00}) {
    make_unreadable(guest_range(at, 512));
    failures = 0;
    NbdExport live(target_of(server.uri()), {});
    EXPECT_THAT(error_of_reading_all(live),
                ::testing::HasSubstr("cannot read bytes " + to_string(guest_range(at, 512)) + ": "));
    EXPECT_LE(failures, 20U) << at;
  }
}

// A failing disk can take a second for each of these.
TEST_F(NbdRetry, ABadZoneCostsFewFailingReads) {
  for (const std::uint64_t at : {0x40000, 0x50000, 0x4C200, 0x58E00}) {
    const GuestRange zone = guest_range(at, 64 * kKiB);
    make_unreadable(zone);
    failures = 0;
    NbdExport live(target_of(server.uri()), {});
    const std::string message = error_of_reading_all(live);
    EXPECT_LE(failures, 21U) << message;
    // All of the zone is inside of what is named.
    const std::size_t colon = message.find("[0x");
    ASSERT_NE(colon, std::string::npos) << message;
    std::size_t used = 0;
    const std::uint64_t begin = std::stoull(message.substr(colon + 1), &used, 16);
    const std::uint64_t end = std::stoull(message.substr(colon + 1 + used + 2), nullptr, 16);
    EXPECT_LE(begin, zone.begin.bytes()) << message;
    EXPECT_GE(end, std::min<std::uint64_t>(zone.end.bytes(), kMiB / 2)) << message;
    EXPECT_LE(end - begin, 2 * zone.length()) << message;
  }
}

TEST_F(NbdRetry, ADiskThatCannotBeReadCostsFewFailingReads) {
  make_unreadable(guest_range(0, kMiB));
  NbdExport live(target_of(server.uri()), {});
  EXPECT_THAT(error_of_reading_all(live), ::testing::HasSubstr("cannot read bytes [0x0, 0x100000): "));
  EXPECT_LE(failures, 4 + 21U);
}

// A hole comes from the server's block status, which can race with the guest; so data is asked for with DF.
TEST_F(NbdRetry, AHoleInPlaceOfDataIsAnError) {
  server.on_read = [](Wire& wire, const Request& request) {
    wire.hole(request, request.offset, request.length, Last::Yes);
  };
  NbdExport live(target_of(server.uri()), {});
  EXPECT_THAT(
      error_of_reading_all(live),
      ::testing::HasSubstr("the server sent a hole although data was requested (DF): Protocol error"));
}

}  // namespace
}  // namespace qchain::tests
