#include "extent/background_writes.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <functional>
#include <new>
#include <system_error>
#include <thread>

#include "extent/page_buffer.h"
#include "tests/random.h"
#include "tests/support.h"

namespace qchain::tests {
namespace {

using ::testing::HasSubstr;

class BackgroundWritesTest : public RandomTest {
 protected:
  File create(const std::string& name) {
    const std::string path = folder / name;
    return {open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600), path};
  }

  // Bytes that begin at a page, or do not.
  std::span<std::byte> bytes(std::size_t length, bool at_page) {
    buffers.emplace_back(length + kPage);
    const std::span<std::byte> bytes = std::span(buffers.back()).subspan(at_page ? 0 : 8, length);
    random.fill(bytes);
    return bytes;
  }

  Folder folder;
  std::vector<PageBuffer> buffers;
};

iovec part_of(std::span<std::byte> bytes) { return {bytes.data(), bytes.size()}; }

TEST_F(BackgroundWritesTest, WriteWhatWritesWrite) {
  for (const bool past_cache : {false, true}) {
    File file = create(past_cache ? "past" : "through");
    if (past_cache) file.bypass_cache();
    WriteQueue queue(file);
    BackgroundWrites background(queue);
    Bytes expected;
    for (int round = 0; round < rounds(10); ++round) {
      std::vector<FileWrite> writes;
      std::uint64_t at = expected.size();
      const std::uint64_t count = random.between(0, 100);  // more than are under way at a time
      for (std::uint64_t i = 0; i < count; ++i) {
        const bool whole = random.chance(80);
        if (random.chance(30)) at += random.between(1, 3) * (whole ? kPage : 100);
        FileWrite write{HostOffset(at), {}};
        for (std::uint64_t parts = random.chance(3) ? 1500 : random.between(1, 4); parts > 0; --parts) {
          const std::span<std::byte> part = bytes(
              whole ? random.between(1, 2) * kPage : random.between(1, 9999), whole || random.chance(50));
          write.parts.push_back(part_of(part));
          expected.resize(at);
          expected.insert(expected.end(), part.begin(), part.end());
          at += part.size();
        }
        writes.push_back(std::move(write));
        if (random.chance(50)) at = align_up(at, kPage);
      }
      background.start(std::move(writes));
      background.wait();
      buffers.clear();
    }
    ASSERT_EQ(first_difference(read_file(file.path()), expected), "");
  }
}

// Where the file system can do that.
TEST_F(BackgroundWritesTest, LeaveThePageCacheAlone) {
  File file = create("disk");
  file.bypass_cache();
  const std::span<std::byte> data = bytes(std::size_t{1} << 20, true);
  const iovec whole = part_of(data);
  struct statfs system {};
  ASSERT_EQ(fstatfs(file.descriptor(), &system), 0);
  if (system.f_type == TMPFS_MAGIC || file.direct_descriptor(HostOffset(0), std::span(&whole, 1)) < 0) {
    GTEST_LOG_(INFO) << folder / "disk"
                     << " is on a file system that is a cache, or has no direct I/O";
    return;
  }
  WriteQueue queue(file);
  BackgroundWrites background(queue);
  background.start({{HostOffset(0), {whole}}});
  background.wait();
  void* const mapped = mmap(nullptr, data.size(), PROT_READ, MAP_SHARED, file.descriptor(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  std::vector<unsigned char> cached(data.size() / kPage);
  ASSERT_EQ(mincore(mapped, data.size(), cached.data()), 0);
  munmap(mapped, data.size());
  EXPECT_THAT(cached, testing::Each(0));
}

TEST_F(BackgroundWritesTest, OnlyWholePagesGoPastTheCache) {
  File file = create("disk");
  const std::span<std::byte> data = bytes(2 * kPage, true);
  const auto descriptor = [&](std::uint64_t at, std::span<std::byte> part) {
    const iovec one = part_of(part);
    return file.direct_descriptor(HostOffset(at), std::span(&one, 1));
  };
  EXPECT_EQ(descriptor(0, data), -1) << "was not asked to";
  file.bypass_cache();
  EXPECT_EQ(descriptor(512, data), -1);
  EXPECT_EQ(descriptor(0, data.subspan(512)), -1);
  EXPECT_EQ(descriptor(0, data.first(kPage + 512)), -1);
}

class SizeLimit {
 public:
  explicit SizeLimit(rlim_t bytes) {
    before_handler_ = std::signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~SizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, before_handler_);
  }

 private:
  rlimit before_{};
  void (*before_handler_)(int);
};

// The failure is reported by wait() at the latest, with the first byte that could not be written.
TEST_F(BackgroundWritesTest, WhatFailsIsNamed) {
  constexpr std::size_t kLimit = std::size_t{16} << 10;
  for (const bool past_cache : {false, true}) {
    File file = create(past_cache ? "past" : "through");
    if (past_cache) file.bypass_cache();
    const std::span<std::byte> data = bytes(std::size_t{64} << 10, true);
    const SizeLimit limit(kLimit);
    WriteQueue queue(file);
    BackgroundWrites background(queue);
    try {
      background.start({{HostOffset(0), {part_of(data)}}});
      background.wait();
      FAIL() << "wrote more than the limit";
    } catch (const Error& error) {
      EXPECT_EQ(error.outcome(), Outcome::Io);
      EXPECT_THAT(error.what(), HasSubstr("offset 0x4000"));
      EXPECT_THAT(error.what(), HasSubstr("File too large"));
    }
  }
}

// Each thread waits for its own writes, and a failure is reported to the thread of the write.
TEST_F(BackgroundWritesTest, ShareAQueue) {
  constexpr std::size_t kThreads = 8;
  constexpr std::size_t kWrite = std::size_t{2} << 20;  // more than one of each thread is not under way
  constexpr std::size_t kRounds = 6;
  File file = create("disk");
  file.bypass_cache();
  WriteQueue queue(file);
  std::vector<std::span<std::byte>> data;
  for (std::size_t i = 0; i < kThreads; ++i) data.push_back(bytes(kWrite, true));
  {
    std::vector<std::jthread> threads;
    for (std::size_t thread = 0; thread < kThreads; ++thread) {
      threads.emplace_back([&, thread] {
        BackgroundWrites background(queue);
        for (std::size_t round = 0; round < kRounds; ++round) {
          const HostOffset at((round * kThreads + thread) * kWrite);
          data[thread].front() = std::byte(round);
          background.start({{at, {part_of(data[thread])}}});
          background.wait();
        }
      });
    }
  }
  Bytes expected;
  for (std::size_t round = 0; round < kRounds; ++round) {
    for (const std::span<std::byte> part : data) {
      part.front() = std::byte(round);
      expected.insert(expected.end(), part.begin(), part.end());
    }
  }
  EXPECT_EQ(first_difference(read_file(file.path()), expected), "");

  const SizeLimit limit(expected.size());
  BackgroundWrites fails(queue);
  BackgroundWrites succeeds(queue);
  fails.start({{HostOffset(expected.size()), {part_of(data[0])}}});
  succeeds.start({{HostOffset(0), {part_of(data[1])}}});
  EXPECT_NO_THROW(succeeds.wait());
  EXPECT_THROW(fails.wait(), Error);
  EXPECT_NO_THROW(fails.wait()) << "is reported once";
}

// What the system can refuse.

class WriteQueueFaults : public BackgroundWritesTest {
 protected:
  WriteQueueFaults() : file(create("disk")) { file.bypass_cache(); }

  // Several threads write 32 pieces each through one queue. True where every wait() succeeded.
  bool write_by_threads(const AsyncWriteCalls& calls) {
    constexpr std::size_t kThreads = 4, kRounds = 32, kPiece = std::size_t{256} << 10;
    WriteQueue queue(file, calls);
    std::atomic<bool> failed = false;
    for (std::size_t i = 0; i < kThreads; ++i) bytes(kPiece, true);
    {
      std::vector<std::jthread> threads;
      for (std::size_t thread = 0; thread < kThreads; ++thread) {
        threads.emplace_back([&, thread] {
          BackgroundWrites background(queue);
          const std::span<std::byte> piece = std::span(buffers[thread]).first(kPiece);
          for (std::size_t round = 0; round < kRounds; ++round) {
            try {
              background.start({{HostOffset((round * kThreads + thread) * kPiece), {part_of(piece)}}});
              background.wait();
            } catch (const Error& error) {
              EXPECT_EQ(error.outcome(), Outcome::Io);
              EXPECT_THAT(error.what(), HasSubstr("cannot learn whether a write is complete"));
              failed = true;
            }
          }
        });
      }
    }
    expected.clear();
    for (std::size_t round = 0; round < kRounds; ++round) {
      for (std::size_t i = 0; i < kThreads; ++i) {
        const std::span<std::byte> piece = std::span(buffers[i]).first(kPiece);
        expected.insert(expected.end(), piece.begin(), piece.end());
      }
    }
    return !failed;
  }
  void expect_all_written() const { EXPECT_EQ(first_difference(read_file(file.path()), expected), ""); }

  File file;
  Bytes expected;
};

TEST_F(WriteQueueFaults, WithoutAContextWritesAreSynchronous) {
  AsyncWriteCalls calls;
  calls.set_up = [](int, io_context_t*) { return -EAGAIN; };
  EXPECT_TRUE(write_by_threads(calls));
  expect_all_written();
}

TEST_F(WriteQueueFaults, WithoutAThreadWritesAreSynchronous) {
  AsyncWriteCalls calls;
  calls.start = [](std::function<void()>) -> std::jthread {
    throw std::system_error(EAGAIN, std::generic_category());
  };
  EXPECT_TRUE(write_by_threads(calls));
  expect_all_written();
  calls.start = [](std::function<void()>) -> std::jthread { throw std::bad_alloc(); };
  EXPECT_TRUE(write_by_threads(calls));
  expect_all_written();
}

// Owners of writes in flight or queued get the error; later writes still succeed.
TEST_F(WriteQueueFaults, AContextThatFailsIsAnErrorAndNotTheEnd) {
  const std::span<std::byte> data = bytes(std::size_t{1} << 20, true);
  const iovec whole = part_of(data);
  if (file.direct_descriptor(HostOffset(0), std::span(&whole, 1)) < 0) {
    GTEST_LOG_(INFO) << "no direct I/O on this file system";
    return;
  }
  AsyncWriteCalls calls;
  calls.get_events = [](io_context_t, long, long, io_event*, timespec*) { return -EINVAL; };
  WriteQueue queue(file, calls);
  BackgroundWrites background(queue);
  const auto write = [&] {
    background.start({{HostOffset(0), {whole}}});
    background.wait();
  };
  try {
    write();
    FAIL() << "it is unknown whether it is written";
  } catch (const Error& error) {
    EXPECT_EQ(error.outcome(), Outcome::Io);
    EXPECT_THAT(error.what(), HasSubstr("cannot learn whether a write is complete"));
  }
  random.fill(data);
  EXPECT_NO_THROW(write());
  EXPECT_EQ(first_difference(read_file(file.path()), Bytes(data.begin(), data.end())), "");
}

// As when there is no memory for a message.
TEST_F(WriteQueueFaults, AnExceptionInTheCompletionThreadIsThrownByWait) {
  const std::span<std::byte> data = bytes(std::size_t{1} << 20, true);
  const iovec whole = part_of(data);
  if (file.direct_descriptor(HostOffset(0), std::span(&whole, 1)) < 0) {
    GTEST_LOG_(INFO) << "no direct I/O on this file system";
    return;
  }
  AsyncWriteCalls calls;
  calls.get_events = [](io_context_t, long, long, io_event*, timespec*) -> int { throw std::bad_alloc(); };
  WriteQueue queue(file, calls);
  BackgroundWrites background(queue);
  const auto write = [&] {
    background.start({{HostOffset(0), {whole}}});
    background.wait();
  };
  EXPECT_THROW(write(), std::bad_alloc);
  random.fill(data);
  EXPECT_NO_THROW(write());
  EXPECT_EQ(first_difference(read_file(file.path()), Bytes(data.begin(), data.end())), "");
}

TEST_F(WriteQueueFaults, AContextThatFailsUnderSeveralThreadsLeavesNoneWaiting) {
  static std::atomic<int> left;
  left = 10;
  AsyncWriteCalls calls;
  calls.get_events = [](io_context_t context, long least, long most, io_event* events, timespec* time) {
    return left-- > 0 ? io_getevents(context, least, most, events, time) : -EIO;
  };
  write_by_threads(calls);
}

}  // namespace
}  // namespace qchain::tests
