// Reads from the storage, bypassing the page cache.
#include "extent/uncached_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <optional>

#include "tests/random.h"
#include "tests/support.h"

namespace qchain::tests {
namespace {

// A loop device over a file.
class Loop {
 public:
  explicit Loop(const std::string& file) : device_(must({"losetup", "--find", "--show", file})) {
    device_.erase(device_.find_last_not_of('\n') + 1);
  }
  ~Loop() { run({"losetup", "--detach", device_}); }
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;
  const std::string& device() const { return device_; }

 private:
  std::string device_;
};

class UncachedFileTest : public RandomTest {
 protected:
  Bytes any_bytes(std::size_t size) {
    Bytes bytes(size);
    random.fill(bytes);
    return bytes;
  }

  static Bytes read(BlockDevice& device, std::uint64_t begin, std::uint64_t length) {
    Bytes bytes(length, std::byte{0xEE});
    const ReadRequest request{GuestOffset(begin), bytes};
    device.open_reader()->read({&request, 1});
    return bytes;
  }

  void check_any_range(const std::string& path, const Bytes& content) {
    UncachedFile file(path);
    ASSERT_EQ(file.size(), content.size());
    for (int round = 0; round < 30; ++round) {
      const std::uint64_t begin = random.below(content.size());
      const std::uint64_t length = random.between(1, content.size() - begin);
      const auto at = content.begin() + static_cast<std::ptrdiff_t>(begin);
      ASSERT_EQ(
          first_difference(read(file, begin, length), Bytes(at, at + static_cast<std::ptrdiff_t>(length))),
          "")
          << begin << ' ' << length;
    }
    ASSERT_EQ(first_difference(content_of(file), content), "");
  }

  Folder folder;
};

TEST_F(UncachedFileTest, ReadsAnyRangeOfAFile) {
  for (const std::uint64_t size : {std::uint64_t{1}, std::uint64_t{65536}, random.between(1, 5 << 20)}) {
    const Bytes content = any_bytes(size);
    write_file(folder / "file", content);
    check_any_range(folder / "file", content);
  }
}

// A file system in memory has no direct I/O, or did not have it for long.
TEST_F(UncachedFileTest, ReadsAFileInMemory) {
  const std::string path = "/dev/shm/qchain-uncached-" + std::to_string(getpid());
  const Bytes content = any_bytes(random.between(1, 5 << 20));
  write_file(path, content);
  check_any_range(path, content);
  unlink(path.c_str());
}

TEST_F(UncachedFileTest, AFileThatEndsTooEarlyIsAnError) {
  write_file(folder / "file", any_bytes(200000));
  UncachedFile file(folder / "file");
  must({"truncate", "-s", "100000", folder / "file"});
  EXPECT_EQ(read(file, 0, 100000).size(), 100000U);
  EXPECT_EQ(outcome_of([&] { read(file, 0, 100001); }), Outcome::Io);
  EXPECT_EQ(outcome_of([&] { read(file, 150000, 10); }), Outcome::Io);
}

TEST_F(UncachedFileTest, ADeviceIsReadPastThePageCache) {
  if (geteuid() != 0) GTEST_SKIP() << "loop devices need root";
  Bytes content = any_bytes(3 << 20);
  write_file(folder / "disk", content);
  const Loop loop(folder / "disk");
  RawFile cached(File::open_to_read(loop.device()));
  UncachedFile uncached(loop.device());
  ASSERT_EQ(first_difference(content_of(cached), content), "");
  // Without going through the device.
  const Bytes before = content;
  for (const std::uint64_t offset : {0, 4096, 1 << 20, (3 << 20) - 512}) content[offset] ^= std::byte{1};
  write_file(folder / "disk", content);
  EXPECT_EQ(first_difference(content_of(cached), before), "") << "the page cache is what it was";
  EXPECT_EQ(first_difference(content_of(uncached), content), "");
}

// Of a device with sectors of 4 KiB, and one whose size is not a multiple of a large power of two.
TEST_F(UncachedFileTest, ADeviceMayEndAnywhere) {
  if (geteuid() != 0) GTEST_SKIP() << "loop devices need root";
  const Bytes content = any_bytes(512 * random.between(1, 9999));
  write_file(folder / "disk", content);
  const Loop loop(folder / "disk");
  check_any_range(loop.device(), content);
}

}  // namespace
}  // namespace qchain::tests
