// Exports of QEMU: qemu-nbd and qemu-storage-daemon.
#include <gmock/gmock.h>

#include <atomic>
#include <future>
#include <latch>

#include "cli/pull.h"
#include "extent/nbd_export.h"
#include "extent/raw_copy.h"
#include "tests/nbd/disk.h"
#include "tests/nbd/server_process.h"
#include "tests/parsed.h"

namespace qchain::tests {
namespace {

using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

const Changes kByBitmap{Changes::Source::DirtyBitmap, {}};
const Changes kByDepth{Changes::Source::AllocationDepth, {}};

Extent extent(std::uint64_t begin, std::uint64_t end, Kind kind) {
  return {{GuestOffset(begin), GuestOffset(end)}, kind};
}

class Qemu : public ::testing::Test {
 protected:
  std::string path(const std::string& name) const { return folder / name; }
  std::string uri() const { return unix_uri(path("s"), "vda"); }

  void create(const std::string& name, const Words& more = {}) const {
    Words words{"qemu-img", "create", "-q", "-f", "qcow2"};
    words.insert(words.end(), more.begin(), more.end());
    words.push_back(path(name));
    words.push_back("16M");
    must(words);
  }
  void add_bitmap(const std::string& bitmap) const {
    must({"qemu-img", "bitmap", "--add", "-f", "qcow2", path("disk"), bitmap});
  }
  // What a guest would do: commands of qemu-io.
  void io(const std::string& name, const Words& commands) const {
    Words words{"qemu-io", "-f", "qcow2"};
    for (const std::string& command : commands) words.insert(words.end(), {"-c", command});
    words.push_back(path(name));
    must(words);
  }

  void serve(const Words& options = {}, const std::string& name = "disk") {
    Words words{"qemu-nbd", "-r", "-f", "qcow2", "-t", "-x", "vda"};
    words.insert(words.end(), options.begin(), options.end());
    words.push_back(path(name));
    server.emplace(ServerProcess::on_unix(path("s"), words));
  }

  // The raw file `disk.raw`, whose reads QEMU makes fail as `fault` says.
  void serve_faulty(const Bytes& disk, const std::string& fault) {
    write_file(path("disk.raw"), disk);
    server.emplace(ServerProcess::on_unix(
        path("s"),
        {"qemu-storage-daemon", "--blockdev", "driver=file,node-name=file,filename=" + path("disk.raw"),
         "--blockdev",
         "driver=blkdebug,node-name=bad,image=file,inject-error.0.event=none,"
         "inject-error.0.iotype=read,inject-error.0.errno=5," +
             fault,
         "--blockdev", "driver=raw,node-name=disk,file=bad", "--nbd-server",
         "addr.type=fd,addr.str=3,max-connections=16", "--export", "type=nbd,id=e,node-name=disk,name=vda"}));
  }

  Outcome pull_to(const std::string& out, const Words& more) const {
    Words words{uri(), "-o", path(out), "--progress", "none"};
    words.insert(words.end(), more.begin(), more.end());
    Console console("pull", false, ProgressStyle::None);
    return pull(parsed<PullOptions>(words), console);
  }
  Folder folder;
  std::optional<ServerProcess> server;
};

// What changed.

TEST_F(Qemu, FindsTheOnlyBitmap) {
  create("disk");
  io("disk", {"write -P 1 0 1M", "write -P 2 4M 64k"});
  add_bitmap("check1");
  io("disk", {"write -P 3 64k 64k", "write -z 4M 64k", "discard 512k 64k"});
  serve({"-B", "check1"});
  NbdExport live(target_of(uri()), kByBitmap);
  EXPECT_EQ(live.bitmap(), "check1");
  EXPECT_THAT(
      collect(extents_of(live)),
      ElementsAre(extent(0, 64 * kKiB, Kind::Inherit), extent(64 * kKiB, 128 * kKiB, Kind::Data),
                  extent(128 * kKiB, 512 * kKiB, Kind::Inherit), extent(512 * kKiB, 576 * kKiB, Kind::Zero),
                  extent(576 * kKiB, 4 * kMiB, Kind::Inherit),
                  extent(4 * kMiB, 4 * kMiB + 64 * kKiB, Kind::Zero),
                  extent(4 * kMiB + 64 * kKiB, 16 * kMiB, Kind::Inherit)));
}

TEST_F(Qemu, WantsOneOfSeveralBitmapsNamed) {
  create("disk");
  add_bitmap("check1");
  io("disk", {"write -P 1 0 64k"});
  add_bitmap("check2");
  io("disk", {"write -P 2 1M 64k"});
  serve({"-B", "check1", "-B", "check2"});
  EXPECT_THAT([&] { NbdExport(target_of(uri()), kByBitmap); }, Fails(Outcome::Usage, "check2"));
  NbdExport live(target_of(uri()), {Changes::Source::DirtyBitmap, "check2"});
  EXPECT_THAT(live.offered_bitmaps(), UnorderedElementsAre("check1", "check2"));
  EXPECT_THAT(collect(extents_of(live)),
              ElementsAre(extent(0, kMiB, Kind::Inherit), extent(kMiB, kMiB + 64 * kKiB, Kind::Data),
                          extent(kMiB + 64 * kKiB, 16 * kMiB, Kind::Inherit)));
}

TEST_F(Qemu, RefusesWhatIsNotOnOffer) {
  create("disk");
  serve();
  EXPECT_THAT([&] { NbdExport(target_of(uri()), kByBitmap); }, Fails(Outcome::Usage, "no dirty bitmap"));
  EXPECT_THAT([&] { NbdExport(target_of(uri()), kByDepth); }, Fails(Outcome::Usage, "qemu:allocation-depth"));
}

TEST_F(Qemu, AnExportThatIsNotThereIsAnIoError) {
  // With any options: a missing export is not a missing bitmap.
  create("disk");
  serve();
  const NbdTarget nowhere = target_of(unix_uri(path("s"), "vdb"));
  EXPECT_THAT([&] { NbdExport(nowhere, {}); }, Fails(Outcome::Io, "; on offer: \"vda\""));
  EXPECT_THAT([&] { NbdExport(nowhere, kByBitmap); }, Fails(Outcome::Io, "does not offer this export"));
}

TEST_F(Qemu, IdentifiesTheActiveLayerByAllocationDepth) {
  create("base");
  io("base", {"write -P 1 0 1M"});
  create("disk", {"-b", "base", "-F", "qcow2"});
  io("disk", {"write -P 2 64k 64k", "write -z 256k 64k"});
  serve({"-A"});
  NbdExport live(target_of(uri()), kByDepth);
  EXPECT_THAT(
      collect(extents_of(live)),
      ElementsAre(extent(0, 64 * kKiB, Kind::Inherit), extent(64 * kKiB, 128 * kKiB, Kind::Data),
                  extent(128 * kKiB, 256 * kKiB, Kind::Inherit), extent(256 * kKiB, 320 * kKiB, Kind::Zero),
                  extent(320 * kKiB, 16 * kMiB, Kind::Inherit)));
}

TEST_F(Qemu, AShallowPullOnTheParentIsTheDisk) {
  create("base");
  io("base", {"write -P 1 0 1M"});
  create("disk", {"-b", "base", "-F", "qcow2"});
  io("disk", {"write -P 2 64k 64k", "write -z 256k 64k", "write -P 3 8M 100k"});
  serve({"-A"});
  EXPECT_EQ(pull_to("inc", {"--parent", path("base"), "--shallow"}), Outcome::Done);
  server.reset();
  EXPECT_EQ(content_by_qemu(path("inc")), content_by_qemu(path("disk")));
}

TEST_F(Qemu, AnIncrementByBitmapOnTheParentIsTheDisk) {
  create("disk");
  io("disk", {"write -P 1 0 1M", "write -P 2 4M 300k"});
  add_bitmap("check1");
  serve({"-B", "check1"});
  EXPECT_EQ(pull_to("full", {}), Outcome::Done);
  server.reset();
  EXPECT_EQ(content_by_qemu(path("full")), content_by_qemu(path("disk")));
  io("disk", {"write -P 3 60k 5000", "write -z 4M 64k", "discard 512k 64k", "write -P 4 15M 1M"});
  serve({"-B", "check1"});
  EXPECT_EQ(pull_to("inc", {"--parent", path("full")}), Outcome::Done);
  server.reset();
  EXPECT_EQ(content_by_qemu(path("inc")), content_by_qemu(path("disk")));
}

// Reading.

class QemuReaders : public Qemu, public ::testing::WithParamInterface<unsigned> {};

TEST_P(QemuReaders, ReadWhatQemuReads) {
  create("disk");
  io("disk", {"write -P 1 0 3M", "write -z 1M 100k", "write -P 2 5M 70k", "write -P 3 9000k 4M",
              "discard 10M 1M", "write -P 4 16776704 512"});
  const Bytes expected = content_by_qemu(path("disk"));
  serve({"-e", "8"});
  NbdExport live(target_of(uri()), {});
  const File out = create_file(path("out.raw"));
  const CopyOptions options{GetParam(), [](std::uint64_t) {}};
  copy_raw(live, guest_range(0, live.size()), out, TargetContent::Zeros, options);
  EXPECT_NO_THROW(live.confirm());
  EXPECT_EQ(read_file(path("out.raw")), expected);
}

INSTANTIATE_TEST_SUITE_P(Number, QemuReaders, ::testing::Values(1U, 2U, 3U, 8U));

TEST_F(Qemu, OneConnectionIsEnough) {
  create("disk");
  io("disk", {"write -P 1 0 3M", "write -P 2 5M 70k"});
  serve({"-e", "1"});
  EXPECT_EQ(pull_to("out.raw", {"--format", "raw", "--connections", "2"}), Outcome::Done);
  server.reset();
  EXPECT_EQ(read_file(path("out.raw")), content_by_qemu(path("disk")));
}

// Errors.

TEST_F(Qemu, AnErrorNamesTheSector) {
  const Bytes disk = disk_bytes(4 * kMiB);
  serve_faulty(disk, "inject-error.0.sector=5000");
  NbdExport live(target_of(uri()), {});
  const auto reader = live.open_reader();
  EXPECT_THAT([&] { read(*reader, 0, 4 * kMiB); },
              Fails(Outcome::Io, "cannot read bytes [0x271000, 0x271200): "));
  EXPECT_EQ(read(*reader, 0, 0x271000), slice(disk, 0, 0x271000));
  EXPECT_EQ(read(*reader, 0x271200, kMiB), slice(disk, 0x271200, kMiB));
  EXPECT_NO_THROW(live.confirm());
}

TEST_F(Qemu, AnErrorThatComesOnceIsRecoveredFrom) {
  const Bytes disk = disk_bytes(4 * kMiB);
  serve_faulty(disk, "inject-error.0.sector=5000,inject-error.0.once=on");
  EXPECT_EQ(pull_to("out.raw", {"--format", "raw"}), Outcome::Done);
  EXPECT_EQ(read_file(path("out.raw")), disk);
}

TEST_F(Qemu, ADiskThatCannotBeReadAtAllIsGivenUpSoon) {
  serve_faulty(disk_bytes(kMiB), "inject-error.0.immediately=off");
  const Stopwatch stopwatch;
  EXPECT_THAT([&] { pull_to("out.raw", {"--format", "raw"}); }, Fails(Outcome::Io, "cannot read bytes"));
  EXPECT_LT(stopwatch.seconds(), 5);
}

// The end of a server.

class QemuEnds : public Qemu {
 protected:
  QemuEnds() {
    create("disk");
    io("disk", {"write -P 1 0 16M"});
    serve({"-e", "8"});
  }
  // Reads the disk with two workers, which wait while this thread does `event`, when half of it is there.
  void copy_with_event_at_half(NbdExport& live, const std::function<void()>& event) {
    std::latch half_is_there(1), event_is_over(1);
    std::atomic<bool> waited = false;
    const auto wait_for_event = [&](std::uint64_t bytes) {
      if (bytes < live.size() / 2 || waited.exchange(true)) return;
      half_is_there.count_down();
      event_is_over.wait();
    };
    const File out = create_file(path("out.raw"));
    auto copying = std::async(std::launch::async, [&] {
      copy_raw(live, guest_range(0, live.size()), out, TargetContent::Zeros, {2, wait_for_event});
    });
    half_is_there.wait();
    event();
    event_is_over.count_down();
    copying.get();
  }
};

TEST_F(QemuEnds, KilledInTheMiddleIsAnIoError) {
  NbdExport live(target_of(uri()), {});
  const Stopwatch stopwatch;
  EXPECT_THAT([&] { copy_with_event_at_half(live, [&] { server->kill(); }); },
              Fails(Outcome::Io, live.name()));
  EXPECT_LT(stopwatch.seconds(), 10);
  EXPECT_THAT([&] { live.status(guest_range(0, kMiB)); },
              Fails(Outcome::Io, "the server cannot be reached any more"));
  EXPECT_THAT([&] { live.confirm(); }, Fails(Outcome::Inconclusive, "start over"));
}

TEST_F(QemuEnds, AnotherServerOfTheSameNameIsInconclusive) {
  // Noticed either by queries about the rest of the disk, or by confirm().
  NbdExport live(target_of(uri()), {});
  EXPECT_THAT(
      [&] {
        copy_with_event_at_half(live, [&] { serve({"-e", "8"}); });
        live.confirm();
      },
      Fails(Outcome::Inconclusive, "start over"));
  EXPECT_THAT([&] { live.confirm(); }, Fails(Outcome::Inconclusive, "start over"));
  EXPECT_THAT([&] { live.status(guest_range(0, kMiB)); }, Fails(Outcome::Inconclusive, "start over"));
}

TEST_F(QemuEnds, AReaderDoesNotGoOnWithAnotherServer) {
  NbdExport live(target_of(uri()), {});
  const auto reader = live.open_reader();
  const Bytes ones(kMiB, std::byte{1});
  EXPECT_EQ(read(*reader, 0, kMiB), ones);
  serve({"-e", "8"});
  EXPECT_THAT([&] { read(*reader, kMiB, kMiB); }, Fails(Outcome::Inconclusive, "start over"));
  EXPECT_THAT([&] { live.confirm(); }, Fails(Outcome::Inconclusive, "start over"));
}

}  // namespace
}  // namespace qchain::tests
