// Exports that are copied to. The servers are nbdkit and qemu-nbd, over a file of other content.
#include "extent/nbd_writer.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <optional>
#include <thread>

#include "extent/raw_copy.h"
#include "tests/nbd/disk.h"
#include "tests/nbd/server_process.h"

namespace qchain::tests {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

WriteRequest bytes_at(std::uint64_t begin, const Bytes& bytes) {
  return {guest_range(begin, bytes.size()), bytes};
}
WriteRequest zeros_at(std::uint64_t begin, std::uint64_t length) { return {guest_range(begin, length), {}}; }

class NbdWriterTest : public RandomTest {
 protected:
  // Serves `size` bytes, none of them zero.
  void serve(std::uint64_t size, const Words& filters = {}, const Words& settings = {}) {
    expected = disk_bytes(size);
    write_file(folder / "disk", expected);
    Words words{"nbdkit", "--foreground", "--exit-with-parent"};
    words.insert(words.end(), filters.begin(), filters.end());
    words.insert(words.end(), {"file", folder / "disk"});
    words.insert(words.end(), settings.begin(), settings.end());
    server.emplace(ServerProcess::on_unix(folder / "s", words));
  }
  void serve_with_qemu(std::uint64_t size, const Words& options = {}) {
    expected = disk_bytes(size);
    write_file(folder / "disk", expected);
    Words words{"qemu-nbd", "-t", "-f", "raw"};
    words.insert(words.end(), options.begin(), options.end());
    words.push_back(folder / "disk");
    server.emplace(ServerProcess::on_unix(folder / "s", words));
  }
  // A server of shell scripts, which handles a flush as the test wants. It keeps them in a folder of its own,
  // which has to be removed for it where it is killed.
  void serve_with_flush(std::uint64_t size, const std::string& flush) {
    expected = disk_bytes(size);
    write_file(folder / "disk", expected);
    const std::string file = folder / "disk";
    server.emplace(ServerProcess::on_unix(
        folder / "s",
        {"nbdkit", "--foreground", "--exit-with-parent", "eval",
         "get_size=echo -n $tmpdir > " + folder / "scripts" + "; stat -c %s " + file,
         "pread=dd if=" + file + " skip=$4 count=$3 iflag=count_bytes,skip_bytes status=none",
         "pwrite=dd of=" + file + " seek=$4 conv=notrunc oflag=seek_bytes status=none", "flush=" + flush}));
  }
  ~NbdWriterTest() override {
    server.reset();
    if (!std::filesystem::exists(folder / "scripts")) return;
    const Bytes name = read_file(folder / "scripts");
    std::filesystem::remove_all(std::string(reinterpret_cast<const char*>(name.data()), name.size()));
  }
  NbdTarget target(std::chrono::milliseconds timeout = std::chrono::seconds(20)) const {
    return target_of(unix_uri(folder / "s"), timeout);
  }

  void expect(const WriteRequest& request) {
    const auto at = expected.begin() + static_cast<std::ptrdiff_t>(request.range.begin.bytes());
    if (request.bytes.empty()) {
      std::fill_n(at, request.range.length(), std::byte{0});
    } else {
      std::ranges::copy(request.bytes, at);
    }
  }
  void write(NbdWriter& writer, const std::vector<WriteRequest>& batch) {
    for (const WriteRequest& request : batch) expect(request);
    writer.write(batch);
  }
  void expect_content() const { ASSERT_EQ(first_difference(read_file(folder / "disk"), expected), ""); }

  // Any disk, copied by several threads onto the first bytes of the export.
  void copy_a_disk(std::uint64_t disk_size, unsigned workers = 4) {
    const Disk disk = random_disk(random, disk_size, random.one_of<std::uint64_t>({512, 4096, 65536, 300000}),
                                  Position::Bottom);
    std::ranges::copy(disk.bytes, expected.begin());
    MemoryDevice source(disk.bytes, disk.extents, std::uint64_t{1} << 30);
    NbdWriter writer(target());
    CopyOptions options;
    options.workers = workers;
    copy_raw(source, guest_range(0, disk_size), writer, options);
    writer.sync();
    expect_content();
  }

  Folder folder;
  Bytes expected;
  std::optional<ServerProcess> server;
};

TEST_F(NbdWriterTest, CopiesAnyDiskOverAnyServer) {
  struct Case {
    Words filters;
    Words settings;
  };
  const std::vector<Case> cases{
      {{}, {}},
      {{"--no-sr"}, {}},
      {{"--filter=nozero"}, {"zeromode=none"}},
      {{"--filter=nozero"}, {"zeromode=emulate"}},
      {{"--filter=nozero"}, {"zeromode=plugin", "fastzeromode=none"}},
      {{"--filter=nozero"}, {"zeromode=plugin", "fastzeromode=slow"}},
      {{"--filter=multi-conn"}, {"multi-conn-mode=disable"}},
      {{"--filter=limit"}, {"limit=1"}},
      {{"--filter=limit"}, {"limit=2"}},
      {{"--filter=noparallel"}, {"serialize=requests"}},
  };
  for (const Case& one : cases) {
    SCOPED_TRACE(testing::PrintToString(one.filters) + testing::PrintToString(one.settings));
    const std::uint64_t size = random.between(1, 6 << 20);
    serve(size, one.filters, one.settings);
    copy_a_disk(random.chance(50) ? size : random.between(1, size));
  }
}

TEST_F(NbdWriterTest, KeepsToTheBlockSizesOfTheServer) {
  const Words filters{"--filter=blocksize-policy"};
  for (const auto& [minimum, maximum] : std::vector<std::pair<std::uint64_t, std::uint64_t>>{
           {1, 4096}, {512, 4096}, {4096, 65536}, {65536, 65536}, {4096, 1 << 20}, {65536, 3 << 20}}) {
    SCOPED_TRACE(std::to_string(minimum) + " to " + std::to_string(maximum));
    const std::uint64_t size = random.between(1, 40) * 65536;
    serve(size, filters,
          {"blocksize-error-policy=error", "blocksize-minimum=" + std::to_string(minimum),
           "blocksize-preferred=" + std::to_string(std::max<std::uint64_t>(minimum, 4096)),
           "blocksize-maximum=" + std::to_string(maximum)});
    copy_a_disk(random.between(1, size));
  }
}

// What shares a block with the disk's last bytes stays as it is.
TEST_F(NbdWriterTest, KeepsWhatIsPastTheDisksEnd) {
  serve(kMiB, {"--filter=blocksize-policy"},
        {"blocksize-error-policy=error", "blocksize-minimum=4096", "blocksize-preferred=4096"});
  NbdWriter writer(target());
  const Bytes bytes(10000, std::byte{7});
  write(writer, {bytes_at(0, bytes)});
  write(writer, {zeros_at(65536, 70001), bytes_at(196608, Bytes(1, std::byte{9}))});
  writer.sync();
  expect_content();
}

TEST_F(NbdWriterTest, SplitsWhatOneRequestCannotHold) {
  serve(9 * kMiB + 77);
  NbdWriter writer(target());
  const Bytes bytes = disk_bytes(3 * kMiB + 5);
  write(writer, {zeros_at(0, 4 * kMiB), bytes_at(4 * kMiB, bytes), zeros_at(8 * kMiB, kMiB + 77)});
  writer.sync();
  expect_content();
}

TEST_F(NbdWriterTest, NeverTrimsAndFlushesAtTheEnd) {
  serve(8 * kMiB, {"--filter=log"}, {"logfile=" + folder / "log"});
  NbdWriter writer(target());
  write(writer, {zeros_at(0, 3 * kMiB), bytes_at(3 * kMiB, disk_bytes(3 * kMiB)), zeros_at(7 * kMiB, kMiB)});
  writer.sync();
  expect_content();
  server.reset();
  const Bytes raw = read_file(folder / "log");
  const std::string log(reinterpret_cast<const char*>(raw.data()), raw.size());
  EXPECT_THAT(log, HasSubstr("Zero"));
  EXPECT_THAT(log, HasSubstr("Write"));
  EXPECT_THAT(log, HasSubstr("Flush"));
  EXPECT_THAT(log, Not(HasSubstr("Trim")));
  EXPECT_LT(std::max(log.rfind(" Write "), log.rfind(" Zero ")), log.rfind(" Flush "));
}

TEST_F(NbdWriterTest, ZerosThatTheServerRefusesAreWritten) {
  serve(4 * kMiB, {"--filter=error"}, {"error-zero=EINVAL", "error-zero-rate=100%"});
  NbdWriter writer(target());
  write(writer, {zeros_at(0, 3 * kMiB), bytes_at(3 * kMiB, Bytes(512, std::byte{1}))});
  writer.sync();
  expect_content();
}

TEST_F(NbdWriterTest, NamesWhatItCannotWrite) {
  write_text(folder / "trigger", std::string());
  serve(4 * kMiB, {"--filter=error"},
        {"error-pwrite=ENOSPC", "error-pwrite-rate=100%", "error-file=" + folder / "trigger"});
  NbdWriter writer(target());
  const Bytes bytes(kMiB, std::byte{1});
  const WriteRequest request = bytes_at(0x100000, bytes);
  EXPECT_THAT(
      [&] {
        writer.write({&request, 1});
      },
      Fails(Outcome::Io, "cannot write [0x100000, 0x140000): No space left on device"));
  // The connection is as good as it was.
  std::filesystem::remove(folder / "trigger");
  write(writer, {request});
  writer.sync();
  expect_content();
}

TEST_F(NbdWriterTest, AFlushThatFailsIsAnError) {
  serve_with_flush(kMiB, "echo EIO >&2; exit 1");
  NbdWriter writer(target());
  write(writer, {zeros_at(0, kMiB)});
  EXPECT_THAT([&] { writer.sync(); }, Fails(Outcome::Io, "cannot flush"));
}

TEST_F(NbdWriterTest, RefusesAnExportThatIsReadOnly) {
  serve(kMiB, {"--readonly"});
  EXPECT_THAT([&] { NbdWriter writer(target()); }, Fails(Outcome::Usage, "read-only"));
  expect_content();
}

TEST_F(NbdWriterTest, AnExportThatIsNotThere) {
  serve_with_qemu(kMiB, {"-x", "vda"});
  EXPECT_THAT([&] { NbdWriter writer(target_of(unix_uri(folder / "s", "vdb"))); }, Fails(Outcome::Io, "vdb"));
  EXPECT_THAT([&] { NbdWriter writer(target_of(unix_uri(folder / "nobody"))); },
              Fails(Outcome::Io, "nobody"));
}

TEST_F(NbdWriterTest, AServerThatDies) {
  serve(4 * kMiB);
  NbdWriter writer(target());
  write(writer, {zeros_at(0, kMiB)});
  server->kill();
  const WriteRequest more = zeros_at(kMiB, kMiB);
  EXPECT_THAT(
      [&] {
        writer.write({&more, 1});
      },
      Fails(Outcome::Io, "the connection was lost while writing [0x100000, 0x"));
  EXPECT_THAT([&] { writer.write({&more, 1}); }, Fails(Outcome::Io, "lost"));
  EXPECT_THAT([&] { writer.sync(); }, Fails(Outcome::Io, "lost"));
}

TEST_F(NbdWriterTest, AServerThatFallsSilent) {
  serve(4 * kMiB);
  NbdWriter writer(target(kSoon));
  write(writer, {zeros_at(0, kMiB)});
  server->freeze();
  const WriteRequest more = zeros_at(kMiB, kMiB);
  const Stopwatch watch;
  EXPECT_THAT([&] { writer.write({&more, 1}); }, Fails(Outcome::Io, "no answer within 300 ms"));
  EXPECT_LT(watch.seconds(), 10);
  EXPECT_THAT([&] { writer.sync(); }, Fails(Outcome::Io, "lost"));
}

// A flush may take longer than any other answer.
TEST_F(NbdWriterTest, AFlushMayTakeItsTime) {
  serve_with_flush(kMiB, "sleep 4");
  NbdWriter writer(target(std::chrono::seconds(3)));
  writer.sync();
  expect_content();
}

// All threads come to an end where the one connection that they share is lost.
TEST_F(NbdWriterTest, WorkersEndWithTheConnectionThatTheyShare) {
  serve(64 * kMiB, {"--filter=multi-conn", "--filter=rate"}, {"multi-conn-mode=disable", "rate=80M"});
  NbdWriter writer(target());
  MemoryDevice source(disk_bytes(64 * kMiB), {{guest_range(0, 64 * kMiB), Kind::Data}}, 64 * kMiB);
  CopyOptions options;
  options.workers = 4;
  std::atomic<unsigned> pieces = 0;
  options.progress = [&](std::uint64_t) {
    if (++pieces == 8) server->kill();
  };
  EXPECT_THAT([&] { copy_raw(source, guest_range(0, 64 * kMiB), writer, options); },
              Fails(Outcome::Io, "lost"));
}

TEST_F(NbdWriterTest, QemuTakesAnyDisk) {
  for (const char* const clients : {"1", "2", "8"}) {
    SCOPED_TRACE(clients);
    serve_with_qemu(6 * kMiB, {"-e", clients});
    const Stopwatch watch;
    copy_a_disk(random.between(1, 6 * kMiB));
    EXPECT_LT(watch.seconds(), 15) << "a connection that the server does not take is not waited for";
  }
}

}  // namespace
}  // namespace qchain::tests
