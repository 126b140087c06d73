// A pass over a disk, with stages that say what they saw.
#include "extent/pass.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <set>

#include "extent/zero.h"
#include "tests/random.h"
#include "tests/support.h"

namespace qchain::tests {
namespace {

constexpr std::uint64_t kBlock = 64 << 10;
constexpr std::uint64_t kMiB = 1 << 20;

// Cannot read some blocks, nor any request that touches one.
class DamagedDevice : public MemoryDevice {
 public:
  DamagedDevice(Bytes bytes, Extents extents, std::set<std::uint64_t> damaged)
      : MemoryDevice(std::move(bytes), std::move(extents), 1 << 30), damaged_(std::move(damaged)) {}

  std::unique_ptr<Reader> open_reader() override {
    class DamagedReader : public Reader {
     public:
      DamagedReader(std::unique_ptr<Reader> whole, const std::set<std::uint64_t>& damaged)
          : whole_(std::move(whole)), damaged_(damaged) {}
      void read(std::span<const ReadRequest> batch) override {
        for (const ReadRequest& request : batch) {
          const auto first = damaged_.lower_bound(request.begin.bytes() / kBlock);
          if (first != damaged_.end() && *first * kBlock < request.range().end.bytes()) {
            throw ReadError("damaged: " + to_string(request.range()), EIO);
          }
        }
        whole_->read(batch);
      }

     private:
      std::unique_ptr<Reader> whole_;
      const std::set<std::uint64_t>& damaged_;
    };
    return std::make_unique<DamagedReader>(MemoryDevice::open_reader(), damaged_);
  }

 private:
  std::set<std::uint64_t> damaged_;
};

// Copies what it is given, and notes what it may and may not do.
class Recorder : public Stage {
 public:
  struct Seen {
    std::mutex mutex;
    Bytes content;
    Extents committed;
    std::set<std::uint64_t> unread;
    bool accepts = false;
  };
  explicit Recorder(Seen& seen) : seen_(seen) {}

  bool accept_unread(const GuestRange& block, const Error& error) override {
    EXPECT_EQ(error.outcome(), Outcome::Io);
    const std::lock_guard lock(seen_.mutex);
    seen_.unread.insert(block.begin.bytes() / kBlock);
    return seen_.accepts;
  }
  void wait(unsigned buffer) override { in_use_.erase(buffer); }
  void fetched(Batch& batch) override {
    EXPECT_FALSE(in_use_.contains(batch.buffer)) << "filled before it was waited for";
    for (const ReadRequest& read : batch.data) {
      std::ranges::copy(read.into, seen_.content.begin() + static_cast<std::ptrdiff_t>(read.begin.bytes()));
    }
  }
  void commit(const Batch& batch) override {
    for (const Extent& run : batch.piece.runs) append(seen_.committed, run);
  }
  void store(const Batch& batch) override { in_use_.insert(batch.buffer); }
  ~Recorder() override { EXPECT_TRUE(std::uncaught_exceptions() > 0 || seen_.accepts || in_use_.empty()); }

 private:
  Seen& seen_;
  std::set<unsigned> in_use_;
};

// Makes Inherit of all Zero runs.
class LeaveOutZeros : public Stage {
 public:
  void fetched(Batch& batch) override {
    for (Extent& run : batch.piece.runs) {
      if (run.kind == Kind::Zero) run.kind = Kind::Inherit;
    }
  }
};

class PassTest : public RandomTest {
 protected:
  PassTest() {
    content = Bytes(kSize);
    random.fill(content);
    seen.content = Bytes(kSize);
    pass.workers = {2, 2};
    pass.piece_bytes = 4 * kBlock;
    pass.stages = {[this] { return std::make_unique<Recorder>(seen); }};
  }

  void run_over(BlockDevice& device) {
    pass.open_reader = [&device] { return device.open_reader(); };
    PieceLimits limits;
    limits.data = 4 * kBlock;
    pass.pieces = pieces_of(extents_of(device), limits);
    run(pass);
  }

  static constexpr std::uint64_t kSize = 3 * kMiB + 1234;
  Bytes content;
  Recorder::Seen seen;
  Pass pass;
};

TEST_F(PassTest, ReadsAllAndCommitsInOrder) {
  std::vector<std::uint64_t> done;
  pass.progress = [&](std::uint64_t at) { done.push_back(at); };
  MemoryDevice device(content, {{guest_range(0, kSize), Kind::Data}}, 1 << 30);
  run_over(device);
  EXPECT_EQ(seen.content, content);
  EXPECT_EQ(seen.committed, (Extents{{guest_range(0, kSize), Kind::Data}}));
  EXPECT_TRUE(std::ranges::is_sorted(done));
  EXPECT_EQ(done.back(), kSize);
}

TEST_F(PassTest, WhatAStageLeavesOutIsLeftOutForThoseAfterIt) {
  const Extents extents{{guest_range(0, kMiB), Kind::Data}, {guest_range(kMiB, kSize - kMiB), Kind::Zero}};
  MemoryDevice device(content, extents, 1 << 30);
  pass.stages.insert(pass.stages.begin(), [] { return std::make_unique<LeaveOutZeros>(); });
  run_over(device);
  EXPECT_EQ(seen.committed.back().kind, Kind::Inherit);
  seen.committed.clear();
  std::ranges::reverse(pass.stages);
  run_over(device);
  EXPECT_EQ(seen.committed.back().kind, Kind::Inherit);  // commit comes after all that was fetched
}

TEST_F(PassTest, BlocksThatCannotBeReadAreZerosIfAStageAcceptsThem) {
  const std::set<std::uint64_t> damaged{0, 5, 6, 48};  // the last one is short
  DamagedDevice device(content, {{guest_range(0, kSize), Kind::Data}}, damaged);
  seen.accepts = true;
  pass.stages.push_back([] { return std::make_unique<LeaveOutZeros>(); });  // accepts nothing
  run_over(device);
  EXPECT_EQ(seen.unread, damaged);
  for (const std::uint64_t block : damaged) {
    const auto begin = content.begin() + static_cast<std::ptrdiff_t>(block * kBlock);
    std::fill(begin, block == 48 ? content.end() : begin + static_cast<std::ptrdiff_t>(kBlock), std::byte{0});
  }
  EXPECT_EQ(first_difference(seen.content, content), "");
}

TEST_F(PassTest, BlocksThatCannotBeReadEndItIfNoStageAcceptsThem) {
  DamagedDevice device(content, {{guest_range(0, kSize), Kind::Data}}, {7});
  EXPECT_EQ(outcome_of([&] { run_over(device); }), Outcome::Io);
  EXPECT_EQ(seen.unread, std::set<std::uint64_t>{7});
  EXPECT_TRUE(seen.committed.empty() || seen.committed.back().range.end <= GuestOffset(7 * kBlock));
}

TEST_F(PassTest, BehindADiskAndItsLastUnitThereAreZeros) {
  // Pieces that reach past the disk, as those of a longer disk beside it do, and a unit of 4 KiB.
  const std::uint64_t wanted = kSize + 3 * kBlock;
  seen.content = Bytes(wanted, std::byte{0xAA});
  MemoryDevice device(content, {{guest_range(0, kSize), Kind::Data}}, 1 << 30);
  class ChecksPadding : public Stage {
   public:
    void fetched(Batch& batch) override {
      for (const ReadRequest& read : batch.data) {
        const std::uint64_t padded = align_up(read.range().end.bytes(), 4096) - read.range().end.bytes();
        EXPECT_TRUE(is_zero(std::span(read.into.data() + read.into.size(), padded)));
      }
    }
  };
  pass.stages.push_back([] { return std::make_unique<ChecksPadding>(); });
  pass.open_reader = [&] { return device.open_reader(); };
  pass.pieces = pieces_of(stream({{guest_range(0, wanted), Kind::Data}}));
  pass.piece_bytes = PieceLimits{}.data + 4096;
  pass.size = kSize;
  pass.unit = 4096;
  pass.workers = {1, 1};  // so that the buffer holds the piece before
  run(pass);
  content.resize(wanted);
  EXPECT_EQ(first_difference(seen.content, content), "");
}

TEST(WorkerPlanTest, StaysWithinItsMemory) {
  for (unsigned wanted = 1; wanted <= 16; ++wanted) {
    for (const std::uint64_t boundary : {kBlock, 2 * kMiB}) {
      for (const unsigned copies : {1U, 2U, 3U}) {
        const PieceLimits limits = limits_for(wanted, copies, boundary);
        EXPECT_EQ(limits.data % boundary, 0U);
        EXPECT_TRUE(limits.data == 2 * boundary || wanted * copies * limits.data <= kMaxPieceMemory);
        const WorkerPlan plan = plan_workers(wanted, limits.data, (copies - 1) * limits.data);
        const std::uint64_t memory = plan.workers * (plan.buffers + copies - 1) * limits.data;
        EXPECT_TRUE(memory <= kMaxPieceMemory || (plan.workers == 1 && plan.buffers == 1));
        EXPECT_LE(plan.workers, wanted);
      }
    }
  }
  EXPECT_EQ(plan_workers(4, 2 * kMiB).workers, 4U);
  EXPECT_EQ(plan_workers(4, 2 * kMiB).buffers, 2U);
  EXPECT_EQ(plan_workers(16, 2 * kMiB).buffers, 1U);
}

}  // namespace
}  // namespace qchain::tests
