// A reader that reconnects finds the same export, or fails.
#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <memory>

#include "extent/nbd_export.h"
#include "extent/read_samples.h"
#include "tests/nbd/fake_server.h"

namespace qchain::tests {
namespace {

class NbdReconnect : public ::testing::Test {
 protected:
  NbdReconnect() : server(disk_bytes(kMiB)), other(server.disk()) {
    // The third connection and all after it are served the other disk.
    server.on_read = [this](Wire& wire, const Request& request) {
      if (request.connection < 2) return server.answer(wire, request);
      wire.data(request, request.offset, slice(other, request.offset, request.length), Last::Yes);
    };
  }

  // Reads the first half, and loses the connection.
  void read_half_and_lose_the_connection() {
    live = std::make_unique<NbdExport>(target_of(server.uri()), Changes{});
    reader = live->open_reader();
    for (std::uint64_t at = 0; at < kMiB / 2; at += kStep) read(*reader, at, kStep);
    server.drop(1);
  }
  auto reading_on() {
    return [this] { return read(*reader, kMiB / 2, kStep); };
  }

  static constexpr std::uint64_t kStep = 16 * kKiB;
  static constexpr const char* kOther = "the export is not the same one after a reconnect";

  FakeServer server;
  Bytes other;
  std::unique_ptr<NbdExport> live;
  std::unique_ptr<Reader> reader;
};

TEST_F(NbdReconnect, GoesOnWithTheSameExport) {
  read_half_and_lose_the_connection();
  EXPECT_EQ(reading_on()(), slice(server.disk(), kMiB / 2, kStep));
  EXPECT_EQ(live->recovered().reconnects, 1U);
  EXPECT_NO_THROW(live->confirm());
}

TEST_F(NbdReconnect, IsInconclusiveWhereWhatWasReadBeforeHasChanged) {
  std::fill_n(other.begin(), kMiB / 2, std::byte{7});
  read_half_and_lose_the_connection();
  EXPECT_THAT(reading_on(), Fails(Outcome::Inconclusive, kOther));
}

TEST_F(NbdReconnect, IsInconclusiveWhereAPartOfItHasChanged) {
  std::fill_n(other.begin() + kMiB / 4, 128 * kKiB, std::byte{7});
  read_half_and_lose_the_connection();
  EXPECT_THAT(reading_on(), Fails(Outcome::Inconclusive, kOther));
}

// The new data is compared with what the first connection, which lives, reads.
TEST_F(NbdReconnect, IsInconclusiveWhereOnlyWhatComesNextIsOther) {
  std::fill_n(other.begin() + kMiB / 2, kMiB / 2, std::byte{7});
  read_half_and_lose_the_connection();
  EXPECT_THAT(reading_on(), Fails(Outcome::Inconclusive, kOther));
}

TEST_F(NbdReconnect, IsInconclusiveWhereNothingWasReadBefore) {
  std::ranges::fill(other, std::byte{7});
  live = std::make_unique<NbdExport>(target_of(server.uri()), Changes{});
  reader = live->open_reader();
  server.drop(1);
  EXPECT_THAT(reading_on(), Fails(Outcome::Inconclusive, kOther));
}

TEST_F(NbdReconnect, IsInconclusiveWhereTheControlConnectionIsLostToo) {
  read_half_and_lose_the_connection();
  server.drop(0);
  EXPECT_THAT(reading_on(), Fails(Outcome::Inconclusive, "start over"));
}

// Bytes that cannot be read any more, for the time being, are not compared.
TEST_F(NbdReconnect, ToleratesErrorsInWhatWasReadBefore) {
  server.on_read = [this](Wire& wire, const Request& request) {
    if (request.connection >= 2 && request.offset < kMiB / 2) return wire.error(request, EIO, Last::Yes);
    server.answer(wire, request);
  };
  read_half_and_lose_the_connection();
  EXPECT_EQ(reading_on()(), slice(server.disk(), kMiB / 2, kStep));
}

// What is kept to compare.

TEST(ReadSamplesTest, AreTheFirstTheLastAndSomeBetween) {
  const Bytes disk = disk_bytes(kMiB);
  ReadSamples samples;
  EXPECT_TRUE(samples.all().empty());
  Bytes buffer;
  for (std::uint64_t at = 0; at < kMiB; at += 1024) {
    buffer = slice(disk, at, 1024);
    samples.add({GuestOffset(at), buffer});
    const auto all = samples.all();
    ASSERT_LE(all.size(), ReadSamples::kMax);
    ASSERT_EQ(all.front().begin, GuestOffset(0));
    ASSERT_EQ(all.back().begin, GuestOffset(at));
  }
  const auto all = samples.all();
  EXPECT_GE(all.size(), ReadSamples::kMax / 2);
  for (std::size_t i = 0; i < all.size(); ++i) {
    EXPECT_TRUE(std::ranges::equal(all[i].content(), slice(disk, all[i].begin.bytes(), kSectorSize)));
    if (i > 0) {
      EXPECT_LE(all[i].begin - all[i - 1].begin, kMiB / 4) << "spread over all that was read";
    }
  }
}

TEST(ReadSamplesTest, AreNotZerosWhereThereIsAnythingElse) {
  Bytes bytes(64 * kKiB);
  EXPECT_EQ(sample_of({GuestOffset(4096), bytes}).begin, GuestOffset(4096));
  bytes[48 * kKiB] = std::byte{1};
  EXPECT_EQ(sample_of({GuestOffset(4096), bytes}).begin, GuestOffset(4096 + 48 * kKiB));
  Bytes few(3, std::byte{1});
  EXPECT_EQ(sample_of({GuestOffset(5), few}).length, 3U);
}

}  // namespace
}  // namespace qchain::tests
