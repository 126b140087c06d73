// Exports of nbdkit, with filters that inject faults.
#include <gmock/gmock.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <thread>

#include "cli/pull.h"
#include "extent/engine.h"
#include "extent/nbd_export.h"
#include "tests/nbd/disk.h"
#include "tests/nbd/server_process.h"
#include "tests/parsed.h"

namespace qchain::tests {
namespace {

using ::testing::ElementsAre;

class Nbdkit : public ::testing::Test {
 protected:
  // Serves `disk` with what stands between nbdkit and the plugin, and what stands at the end.
  void serve(const Bytes& disk, const Words& filters = {}, const Words& settings = {}) {
    content = disk;
    write_file(folder / "disk", disk);
    Words words{"nbdkit", "--foreground", "--readonly", "--exit-with-parent"};
    words.insert(words.end(), filters.begin(), filters.end());
    words.insert(words.end(), {"file", folder / "disk"});
    words.insert(words.end(), settings.begin(), settings.end());
    server.emplace(ServerProcess::on_unix(folder / "s", words));
  }

  std::string uri() const { return unix_uri(folder / "s"); }
  Bytes part(std::uint64_t begin, std::uint64_t length) const { return slice(content, begin, length); }

  // The command, as a user runs it, to a raw file.
  Bytes pull_raw(const Words& more = {}) {
    const std::string out = folder / "out.raw";
    Words words{uri(), "-o", out, "--format", "raw", "--force", "--progress", "none"};
    words.insert(words.end(), more.begin(), more.end());
    Console console("pull", false, ProgressStyle::None);
    EXPECT_EQ(pull(parsed<PullOptions>(words), console), Outcome::Done);
    return read_file(out);
  }

  Folder folder;
  Bytes content;
  std::optional<ServerProcess> server;
};

// Errors.

TEST_F(Nbdkit, AnErrorNamesExactlyTheRangeThatIsBad) {
  write_text(folder / "bad.map", std::string("# Mapfile\n0x0 + 1\n"
                                             "0x000000 0x180600 +\n"
                                             "0x180600 0x000800 -\n"
                                             "0x180E00 0x07F200 +\n"));
  serve(disk_bytes(2 * kMiB), {"--filter=ddrescue"}, {"ddrescue-mapfile=" + folder / "bad.map"});
  NbdExport live(target_of(uri()), {});
  const auto reader = live.open_reader();
  EXPECT_THAT([&] { read(*reader, 0, 2 * kMiB); },
              Fails(Outcome::Io, "cannot read bytes [0x180600, 0x180e00): "));
  EXPECT_EQ(read(*reader, 0, 0x180600), part(0, 0x180600));
  EXPECT_EQ(read(*reader, 0x180E00, 0x7F200), part(0x180E00, 0x7F200));
}

TEST_F(Nbdkit, APullThatCannotReadNamesTheRangeAndLeavesNothing) {
  write_text(folder / "bad.map", std::string("0x0 + 1\n"
                                             "0x00000 0x80000 +\n"
                                             "0x80000 0x00200 -\n"
                                             "0x80200 0x7FE00 +\n"));
  serve(disk_bytes(kMiB), {"--filter=ddrescue"}, {"ddrescue-mapfile=" + folder / "bad.map"});
  EXPECT_THAT([&] { pull_raw(); }, Fails(Outcome::Io, "cannot read bytes [0x80000, 0x80200): "));
  EXPECT_FALSE(std::filesystem::exists(folder / "out.raw"));
  EXPECT_FALSE(std::filesystem::exists(folder / "out.raw.partial"));
}

TEST_F(Nbdkit, RandomErrorsAreRecoveredFrom) {
  serve(disk_bytes(8 * kMiB), {"--filter=error"}, {"error-pread-rate=10%"});
  EXPECT_EQ(pull_raw(), content);
}

TEST_F(Nbdkit, ErrorsThatLastAreReported) {
  write_text(folder / "trigger", std::string());
  serve(disk_bytes(kMiB), {"--filter=error"}, {"error-pread-rate=100%", "error-file=" + folder / "trigger"});
  NbdExport live(target_of(uri()), {});
  const auto reader = live.open_reader();
  EXPECT_THAT([&] { read(*reader, 4096, 8192); }, Fails(Outcome::Io, "cannot read bytes [0x1000, 0x3000): "));
  std::filesystem::remove(folder / "trigger");
  EXPECT_EQ(read(*reader, 4096, 8192), part(4096, 8192));
}

TEST_F(Nbdkit, AnErrorOfBlockStatusIsReported) {
  serve(disk_bytes(kMiB), {"--filter=error"}, {"error-extents-rate=100%"});
  NbdExport live(target_of(uri()), {});
  EXPECT_THAT([&] { live.status(guest_range(0, kMiB)); }, Fails(Outcome::Io, "block status"));
}

// What a server can lack.

TEST_F(Nbdkit, WithoutExtentsEverythingIsRead) {
  serve(Bytes(kMiB), {"--filter=noextents"});
  NbdExport live(target_of(uri()), {});
  EXPECT_THAT(live.extents(guest_range(0, kMiB)), ElementsAre(Extent{guest_range(0, kMiB), Kind::Data}));
  EXPECT_EQ(pull_raw(), content);
}

TEST_F(Nbdkit, WithoutStructuredRepliesEverythingIsRead) {
  serve(disk_bytes(kMiB), {"--no-sr"});
  NbdExport live(target_of(uri()), {});
  EXPECT_FALSE(live.has_allocation());
  EXPECT_EQ(pull_raw(), content);
}

TEST_F(Nbdkit, WithoutStructuredRepliesAnErrorNamesTheRange) {
  write_text(folder / "bad.map", std::string("0x0 + 1\n"
                                             "0x00000 0x80000 +\n"
                                             "0x80000 0x00200 -\n"
                                             "0x80200 0x7FE00 +\n"));
  serve(disk_bytes(kMiB), {"--no-sr", "--filter=ddrescue"}, {"ddrescue-mapfile=" + folder / "bad.map"});
  EXPECT_THAT([&] { pull_raw(); }, Fails(Outcome::Io, "cannot read bytes [0x80000, 0x80200): "));
}

TEST_F(Nbdkit, AnExportThatIsNotThereIsAnError) {
  // With structured replies, base:allocation is listed for any name.
  for (const Words& filters : {Words{"--filter=exportname"}, {"--no-sr", "--filter=exportname"}}) {
    serve(disk_bytes(kMiB), filters,
          {"exportname=vda", "exportname-strict=true", "exportname-list=explicit"});
    const std::string missing = unix_uri(folder / "s", "vdb");
    EXPECT_NO_THROW(NbdExport(target_of(unix_uri(folder / "s", "vda")), {}));
    for (const auto source : {Changes::Source::None, Changes::Source::DirtyBitmap}) {
      EXPECT_THAT(
          [&] {
            NbdExport(target_of(missing), {source, {}});
          },
          Fails(Outcome::Io, "does not offer this export: No such file or directory; on offer: \"vda\""));
    }
  }
}

TEST_F(Nbdkit, TheOldProtocolIsSpoken) {
  serve(disk_bytes(kMiB + 1), {"--oldstyle"});
  EXPECT_EQ(pull_raw(), content);
  EXPECT_THAT(
      [&] {
        NbdExport(target_of(uri()), {Changes::Source::DirtyBitmap, {}});
      },
      Fails(Outcome::Usage, "no dirty bitmap"));
}

TEST_F(Nbdkit, OneConnectionIsEnough) {
  serve(disk_bytes(4 * kMiB), {"--filter=limit"}, {"limit=1"});
  EXPECT_EQ(pull_raw({"--connections", "4"}), content);
}

TEST_F(Nbdkit, SeveralConnectionsAreTriedWithoutAnInvitation) {
  serve(disk_bytes(4 * kMiB), {"--filter=multi-conn"}, {"multi-conn-mode=disable"});
  NbdExport live(target_of(uri()), {});
  const auto shared = live.open_reader();
  const auto own = live.open_reader();
  ASSERT_NE(own, nullptr);
  EXPECT_EQ(read(*own, 0, kMiB), part(0, kMiB));
  EXPECT_EQ(read(*shared, kMiB, kMiB), part(kMiB, kMiB));
  EXPECT_EQ(pull_raw({"--connections", "4"}), content);
}

// A server that reports zeros where it has data: its reply counts.
TEST_F(Nbdkit, ZerosAreTakenFromTheServer) {
  write_text(folder / "extents", std::string("0 64K\n64K 128K hole,zero\n192K 64K hole\n"));
  serve(disk_bytes(256 * kKiB), {"--filter=extentlist"}, {"extentlist=" + folder / "extents"});
  NbdExport live(target_of(uri()), {});
  EXPECT_THAT(collect(extents_of(live)), ElementsAre(Extent{guest_range(0, 64 * kKiB), Kind::Data},
                                                     Extent{guest_range(64 * kKiB, 128 * kKiB), Kind::Zero},
                                                     Extent{guest_range(192 * kKiB, 64 * kKiB), Kind::Data}));
  Bytes expected = content;
  std::fill_n(expected.begin() + 64 * kKiB, 128 * kKiB, std::byte{0});
  EXPECT_EQ(pull_raw(), expected);
}

// Block sizes: the filter refuses requests that do not keep to them.
class NbdkitBlocks : public Nbdkit {
 protected:
  void SetUp() override {
    serve(disk_bytes(kMiB), {"--filter=blocksize-policy"},
          {"blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=65536",
           "blocksize-error-policy=error"});
  }
};

TEST_F(NbdkitBlocks, AreKeptTo) { EXPECT_EQ(pull_raw(), content); }

TEST_F(NbdkitBlocks, AreKeptToForARangeThatIsNotAligned) {
  EXPECT_EQ(pull_raw({"--range", "100:50"}), part(100, 50));
  EXPECT_EQ(pull_raw({"--range", "4095:2"}), part(4095, 2));
  EXPECT_EQ(pull_raw({"--range", "5000:300000"}), part(5000, 300000));
  EXPECT_EQ(pull_raw({"--range", "1048575:1"}), part(kMiB - 1, 1));
}

TEST_F(NbdkitBlocks, AreKeptToByReadersAndConfirm) {
  NbdExport live(target_of(uri()), {});
  const auto reader = live.open_reader();
  for (const auto& [begin, length] : {std::pair{100, 50}, {4095, 2}, {5000, 300000}, {0, 1}, {1048575, 1}}) {
    EXPECT_EQ(read(*reader, begin, length), part(begin, length));
  }
  EXPECT_NO_THROW(live.confirm());
}

TEST_F(Nbdkit, ATailThatIsNotAWholeBlockIsReported) {
  serve(disk_bytes(kMiB + 1000), {"--filter=blocksize-policy"}, {"blocksize-minimum=4096"});
  EXPECT_THAT([&] { NbdExport(target_of(uri()), {}); },
              Fails(Outcome::Io, "the last 1000 bytes cannot be read"));
}

TEST_F(Nbdkit, DisksOfAnySizeArePulled) {
  for (const std::uint64_t size : {0, 1, 1000, 1048577}) {
    serve(disk_bytes(size));
    EXPECT_EQ(pull_raw(), content) << size;
    NbdExport live(target_of(uri()), {});
    EXPECT_EQ(live.size(), size);
    EXPECT_NO_THROW(live.confirm());
  }
}

TEST_F(Nbdkit, ARangeOfADiskIsPulled) {
  serve(disk_bytes(kMiB + 1));
  EXPECT_EQ(pull_raw({"--range", "100:50"}), part(100, 50));
  EXPECT_EQ(pull_raw({"--range", "1000000:48577"}), part(1000000, 48577));
  EXPECT_EQ(pull_raw({"--range", "1048577:0"}), Bytes());
  EXPECT_THAT([&] { pull_raw({"--range", "1048577:1"}); }, Fails(Outcome::Usage, "past the end of the disk"));
}

// Time.

TEST_F(Nbdkit, RequestsWaitTogetherForASlowDisk) {
  // 32 requests of 100 ms each: 3.2 s one by one, 0.2 s with 16 at a time.
  serve(disk_bytes(8 * kMiB), {"--filter=delay"}, {"rdelay=100ms"});
  NbdExport live(target_of(uri()), {});
  const auto reader = live.open_reader();
  const Stopwatch stopwatch;
  EXPECT_EQ(read(*reader, 0, 8 * kMiB), content);
  EXPECT_LT(stopwatch.seconds(), 1.6);
}

TEST_F(Nbdkit, WhatTakesLongIsReadByMore) {
  serve(disk_bytes(kMiB), {"--filter=delay"}, {"rdelay=10ms"});
  EXPECT_EQ(NbdExport(target_of(uri()), {}).useful_readers(), kMaxWorkers);
  serve(disk_bytes(kMiB));
  const unsigned near = NbdExport(target_of(uri()), {}).useful_readers();
  EXPECT_GE(near, default_workers());
  EXPECT_LE(near, kMaxWorkers);
}

TEST_F(Nbdkit, AFirstSectorThatCannotBeReadIsNoReasonToGiveUp) {
  serve(disk_bytes(kMiB), {"--filter=error"}, {"error-pread=EIO", "error-pread-rate=100%"});
  EXPECT_EQ(NbdExport(target_of(uri()), {}).useful_readers(), default_workers());
  serve({});
  EXPECT_GE(NbdExport(target_of(uri()), {}).useful_readers(), default_workers());
}

TEST_F(Nbdkit, ASlowServerIsNotASilentOne) {
  // The whole batch takes longer than the time-out, and every reply comes within it.
  serve(disk_bytes(2 * kMiB), {"--filter=delay", "--threads=1"}, {"rdelay=100ms"});
  NbdExport live(target_of(uri(), std::chrono::milliseconds(500)), {});
  const auto reader = live.open_reader();
  EXPECT_EQ(read(*reader, 0, 2 * kMiB), content);
}

// The pause filter stops all requests until it is resumed.
class NbdkitPause : public Nbdkit {
 protected:
  NbdkitPause() {
    // One thread: nbdkit 1.32 can abort when several find at a time that their client has gone.
    serve(disk_bytes(kMiB), {"--filter=pause", "--threads=1"}, {"pause-control=" + folder / "control"});
  }

  void control(char command) const {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = folder / "control";
    std::memcpy(address.sun_path, path.c_str(), path.size());
    const int socket = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ASSERT_EQ(connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    char answer = 0;
    ASSERT_EQ(write(socket, &command, 1), 1);
    ASSERT_EQ(::read(socket, &answer, 1), 1);
    close(socket);
  }
};

TEST_F(NbdkitPause, IsSurvivedWhenItEnds) {
  NbdExport live(target_of(uri(), kSoon), {});
  const auto reader = live.open_reader();
  control('p');
  std::jthread later([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(700));
    control('r');
  });
  EXPECT_EQ(read(*reader, 0, kMiB), content);
}

TEST_F(NbdkitPause, IsAnErrorWhenItDoesNot) {
  NbdExport live(target_of(uri(), kSoon), {});
  const auto reader = live.open_reader();
  control('p');
  EXPECT_THAT([&] { read(*reader, 0, kMiB); }, Fails(Outcome::Io, "no answer within 300 ms"));
}

TEST_F(NbdkitPause, AtTheEndIsAnError) {
  NbdExport live(target_of(uri(), kSoon), {});
  control('p');
  EXPECT_THAT([&] { live.confirm(); }, Fails(Outcome::Io, "cannot confirm"));
}

TEST_F(Nbdkit, AStoppedServerIsAnError) {
  serve(disk_bytes(kMiB));
  NbdExport live(target_of(uri(), kSoon), {});
  server->freeze();
  const Stopwatch stopwatch;
  EXPECT_THAT([&] { live.status(guest_range(0, kMiB)); }, Fails(Outcome::Io, "timed out"));
  EXPECT_THAT([&] { NbdExport(target_of(uri(), kSoon), {}); }, Fails(Outcome::Io, "no answer"));
  EXPECT_LT(stopwatch.seconds(), 5);
}

}  // namespace
}  // namespace qchain::tests
