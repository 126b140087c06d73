// A disk, or a part of it, as plain bytes.
#include "extent/raw_copy.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <thread>

#include "tests/random.h"
#include "tests/support.h"

namespace qchain::tests {
namespace {

class RawCopyTest : public RandomTest {
 protected:
  // A disk and a part of it. Half the time neither end is a multiple of anything.
  void draw() {
    const std::uint64_t size = random.between(1, 6 << 20);
    const std::uint64_t grain = random.one_of<std::uint64_t>({512, 4096, 65536, 300000});
    disk = random_disk(random, size, grain, Position::Bottom);
    range = guest_range(0, size);
    if (random.chance(50)) {
      const std::uint64_t begin = random.below(size);
      range = guest_range(begin, random.between(0, size - begin));
    }
    const auto begin = disk.bytes.begin() + static_cast<std::ptrdiff_t>(range.begin.bytes());
    expected = Bytes(begin, begin + static_cast<std::ptrdiff_t>(range.length()));
    options.workers = random.bits(1, 4);
    done.clear();
    options.progress = [this](std::uint64_t bytes) { done.push_back(bytes); };
  }

  MemoryDevice device() {
    return {disk.bytes, disk.extents, random.one_of<std::uint64_t>({1000, 70000, 1 << 30})};
  }

  void check(const CopyResult& result) {
    EXPECT_EQ(result.data_bytes + result.zero_bytes, range.length());
    EXPECT_TRUE(std::ranges::is_sorted(done));
    if (!range.empty()) {
      EXPECT_EQ(done.back(), range.length());
    }
  }

  Folder folder;
  Disk disk;
  GuestRange range;
  Bytes expected;
  CopyOptions options;
  std::vector<std::uint64_t> done;
};

TEST_F(RawCopyTest, ToANewFile) {
  for (int round = 0; round < 15; ++round) {
    draw();
    MemoryDevice source = device();
    const File target = create_file(folder / "raw");
    check(copy_raw(source, range, target, TargetContent::Zeros, options));
    ASSERT_EQ(first_difference(read_file(folder / "raw"), expected), "") << to_string(range);
  }
}

TEST_F(RawCopyTest, ToADeviceWithOldContent) {
  for (int round = 0; round < 15; ++round) {
    draw();
    MemoryDevice source = device();
    const File target = create_file(folder / "raw");
    // A device is as large as the range, or larger; data after the range is not changed.
    Bytes old(range.length() + random.below(100000));
    random.fill(old);
    target.write(HostOffset(0), old);
    check(copy_raw(source, range, target, TargetContent::Unknown, options));
    std::ranges::copy(expected, old.begin());
    ASSERT_EQ(first_difference(read_file(folder / "raw"), old), "") << to_string(range);
  }
}

TEST_F(RawCopyTest, ToAPipe) {
  for (int round = 0; round < 8; ++round) {
    draw();
    MemoryDevice source = device();
    int ends[2];
    ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
    Bytes got;
    std::jthread reading([&, reader = File(ends[0], "reading")] {
      Bytes some(1 << 16);
      for (ssize_t n = 0; (n = ::read(reader.descriptor(), some.data(), some.size())) > 0;) {
        got.insert(got.end(), some.begin(), some.begin() + n);
      }
    });
    {
      const File target(ends[1], "writing");
      check(copy_raw(source, range, target, TargetContent::Stream, options));
    }
    reading.join();
    ASSERT_EQ(first_difference(got, expected), "") << to_string(range);
  }
}

// Threads that write whole blocks never meet in one, and every byte is written once.
TEST_F(RawCopyTest, NoTwoBatchesShareABlock) {
  class Recorder : public CopyTarget {
   public:
    explicit Recorder(std::uint64_t size) : bytes(size, std::byte{0xEE}), batch_of_block(size / 65536 + 1) {}
    std::unique_ptr<TargetWriter> open_writer() override {
      return synchronous_writer([this](std::span<const WriteRequest> batch) { write(batch); });
    }
    void write(std::span<const WriteRequest> batch) {
      const std::lock_guard lock(in_use_);
      ++batches_;
      for (const WriteRequest& request : batch) {
        const GuestRange& range = request.range;
        ASSERT_FALSE(range.empty());
        ASSERT_TRUE(request.bytes.empty() || request.bytes.size() == range.length());
        for (std::uint64_t at = range.begin.bytes(); at < range.end.bytes(); ++at) {
          unsigned& owner = batch_of_block[at / 65536];
          ASSERT_TRUE(owner == 0 || owner == batches_) << at;
          owner = batches_;
          bytes[at] = request.bytes.empty() ? std::byte{0} : request.bytes[at - range.begin.bytes()];
        }
        written += range.length();
      }
    }
    void sync() override {}

    Bytes bytes;
    std::vector<unsigned> batch_of_block;
    std::uint64_t written = 0;

   private:
    std::mutex in_use_;
    unsigned batches_ = 0;
  };
  for (int round = 0; round < 15; ++round) {
    draw();
    range.begin = GuestOffset(align_down(range.begin.bytes(), 65536));
    const auto begin = disk.bytes.begin() + static_cast<std::ptrdiff_t>(range.begin.bytes());
    expected = Bytes(begin, begin + static_cast<std::ptrdiff_t>(range.length()));
    MemoryDevice source = device();
    Recorder target(range.length());
    check(copy_raw(source, range, target, options));
    ASSERT_EQ(first_difference(target.bytes, expected), "") << to_string(range);
    ASSERT_EQ(target.written, range.length());
  }
}

// Zeros become holes, whether the disk said so or they were found by looking.
TEST_F(RawCopyTest, ANewFileIsSparse) {
  constexpr std::uint64_t kSize = 16 << 20;
  Bytes bytes(kSize);
  random.fill(std::span(bytes).first(65536));
  random.fill(std::span(bytes).last(65536));
  const Extents half{{guest_range(0, kSize / 2), Kind::Data},
                     {guest_range(kSize / 2, kSize / 4), Kind::Inherit},
                     {guest_range(kSize * 3 / 4, kSize / 4), Kind::Data}};
  MemoryDevice source(bytes, half, kSize);
  const File target = create_file(folder / "raw");
  const CopyResult result = copy_raw(source, guest_range(0, kSize), target, TargetContent::Zeros, {});
  EXPECT_EQ(first_difference(read_file(folder / "raw"), bytes), "");
  EXPECT_LE(target.allocated_bytes(), 4 * 65536U);
  EXPECT_EQ(result.data_bytes, 2 * 65536U);
  EXPECT_EQ(result.zero_bytes, kSize - 2 * 65536U);
}

TEST_F(RawCopyTest, AReadErrorArrives) {
  class Broken : public MemoryDevice {
   public:
    using MemoryDevice::MemoryDevice;
    std::unique_ptr<Reader> open_reader() override {
      class Failing : public Reader {
        void read(std::span<const ReadRequest>) override { throw Error(Outcome::Io, "unreadable"); }
      };
      return std::make_unique<Failing>();
    }
  };
  Broken source(Bytes(1 << 20), {{guest_range(0, 1 << 20), Kind::Data}}, 1 << 20);
  const File target = create_file(folder / "raw");
  options.workers = 4;
  EXPECT_EQ(
      outcome_of([&] { copy_raw(source, guest_range(0, 1 << 20), target, TargetContent::Zeros, options); }),
      Outcome::Io);
}

}  // namespace
}  // namespace qchain::tests
