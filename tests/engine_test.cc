// The engine's promises: order, exclusion, and an end after every failure.
#include "extent/engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <functional>
#include <mutex>
#include <new>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "extent/cancellation.h"
#include "extent/error.h"
#include "tests/random.h"
#include "tests/support.h"

namespace qchain::tests {
namespace {

// Counts who is inside; more than one is a failure of the engine. Stays for a moment, so that they meet.
class Exclusive {
 public:
  explicit Exclusive(std::atomic<int>& inside) : inside_(inside) {
    EXPECT_EQ(++inside_, 1);
    std::this_thread::sleep_for(std::chrono::microseconds(10));
  }
  ~Exclusive() { --inside_; }
  Exclusive(const Exclusive&) = delete;
  Exclusive& operator=(const Exclusive&) = delete;

 private:
  std::atomic<int>& inside_;
};

enum class Stage { Take, Fetch, Settle, Store };

// Work whose pieces are the numbers below `count`.
struct Work {
  int count = 0;
  int next = 0;                // changed in take(), which is exclusive
  std::vector<int> committed;  // changed in commit(), likewise
  std::atomic<int> in_take{0};
  std::atomic<int> in_commit{0};
  std::atomic<int> in_fetch{0};
  std::atomic<int> most_in_fetch{0};
  std::mutex mutex;
  std::multiset<int> stored;  // under the mutex

  // Which call fails, and how.
  int failing_piece = -1;
  Stage failing_stage = Stage::Take;
  std::atomic<int> takes{0};
};

void pause_a_bit(int piece) {
  // Later pieces tend to be ready earlier.
  std::this_thread::sleep_for(std::chrono::microseconds(50 * (3 - piece % 4)));
}

class NumberWorker : public Worker {
 public:
  explicit NumberWorker(Work& work) : work_(work) {}

  bool take() override {
    const Exclusive alone(work_.in_take);
    ++work_.takes;
    if (work_.next == work_.count) return false;
    piece_ = work_.next++;
    fail_at(Stage::Take);
    return true;
  }
  void fetch() override {
    const int now = ++work_.in_fetch;
    for (int most = work_.most_in_fetch; now > most;) {
      if (work_.most_in_fetch.compare_exchange_weak(most, now)) break;
    }
    pause_a_bit(piece_);
    --work_.in_fetch;
    fail_at(Stage::Fetch);
  }
  void commit() override {
    const Exclusive alone(work_.in_commit);
    fail_at(Stage::Settle);
    work_.committed.push_back(piece_);
  }
  void store() override {
    fail_at(Stage::Store);
    const std::lock_guard lock(work_.mutex);
    work_.stored.insert(piece_);
  }

 private:
  void fail_at(Stage stage) const {
    if (piece_ == work_.failing_piece && stage == work_.failing_stage) {
      throw std::runtime_error("piece " + std::to_string(piece_));
    }
  }

  Work& work_;
  int piece_ = -1;
};

WorkerFactory factory_of(Work& work) {
  return [&work] { return std::make_unique<NumberWorker>(work); };
}

std::vector<int> numbers(int count) {
  std::vector<int> all;
  for (int i = 0; i < count; ++i) all.push_back(i);
  return all;
}

class EngineTest : public testing::TestWithParam<unsigned> {};
INSTANTIATE_TEST_SUITE_P(Threads, EngineTest, testing::Values(1, 2, 3, 8),
                         [](const auto& threads) { return std::to_string(threads.param); });

TEST_P(EngineTest, CommitsInTheOrderOfTaking) {
  for (const int count : {0, 1, 2, 200}) {
    Work work;
    work.count = count;
    run_workers(factory_of(work), GetParam());
    EXPECT_EQ(work.committed, numbers(count));
    const std::vector<int> stored(work.stored.begin(), work.stored.end());
    EXPECT_EQ(stored, numbers(count)) << "each is stored once";
  }
}

TEST_P(EngineTest, EveryStagesExceptionStopsAllAndArrives) {
  for (const Stage stage : {Stage::Take, Stage::Fetch, Stage::Settle, Stage::Store}) {
    for (const int failing : {0, 1, 17}) {
      Work work;
      work.count = 100000;  // at 50 us each this would take seconds: all have to stop
      work.failing_piece = failing;
      work.failing_stage = stage;
      try {
        run_workers(factory_of(work), GetParam());
        ADD_FAILURE() << "nothing was thrown";
      } catch (const std::runtime_error& error) {
        EXPECT_EQ(error.what(), "piece " + std::to_string(failing));
      }
      EXPECT_LT(work.next, 1000);
      // What had been committed is the beginning, without gaps, and nothing after the piece that failed
      // before it was committed.
      EXPECT_EQ(work.committed, numbers(static_cast<int>(work.committed.size())));
      if (stage != Stage::Store) {
        EXPECT_LE(work.committed.size(), static_cast<std::size_t>(failing));
      }
    }
  }
}

TEST_P(EngineTest, WorksWithTheWorkersThatCanBeHad) {
  Work work;
  work.count = 100;
  std::atomic<int> asked{0};
  run_workers(
      [&]() -> std::unique_ptr<Worker> {
        if (asked++ > 0) return nullptr;
        return std::make_unique<NumberWorker>(work);
      },
      GetParam());
  EXPECT_EQ(work.committed, numbers(100));
  EXPECT_LE(asked, static_cast<int>(GetParam()));
}

TEST_P(EngineTest, TheFactorysExceptionArrives) {
  for (const int failing : {0, 1}) {
    if (failing >= static_cast<int>(GetParam())) continue;
    Work work;
    work.count = 100000;
    std::atomic<int> asked{0};
    EXPECT_THROW(run_workers(
                     [&]() -> std::unique_ptr<Worker> {
                       if (asked++ == failing) throw std::runtime_error("no worker");
                       return std::make_unique<NumberWorker>(work);
                     },
                     GetParam()),
                 std::runtime_error);
    EXPECT_LT(work.next, 10000);
  }
}

// If a further worker cannot be created, the others do all the work.
TEST_P(EngineTest, AFurtherWorkerThatCannotBeMadeIsLeftOut) {
  const std::vector<std::function<void()>> failures{
      [] { throw Error(Outcome::Io, "no connection"); }, [] { throw std::bad_alloc(); },
      [] { throw std::system_error(EAGAIN, std::generic_category()); }};
  for (const auto& fail : failures) {
    Work work;
    work.count = 100;
    std::atomic<int> asked{0};
    const auto make = [&]() -> std::unique_ptr<Worker> {
      if (asked++ > 0) fail();
      return std::make_unique<NumberWorker>(work);
    };
    EXPECT_NO_THROW(run_workers(make, GetParam()));
    EXPECT_EQ(work.committed, numbers(100));
    EXPECT_THROW(run_workers(make, GetParam()), std::exception) << "the first one has to exist";
  }
}

TEST_P(EngineTest, AnotherErrorOfTheFactoryArrives) {
  if (GetParam() == 1) return;
  Work work;
  work.count = 100000;
  std::atomic<int> asked{0};
  EXPECT_THROW(run_workers(
                   [&]() -> std::unique_ptr<Worker> {
                     if (asked++ > 0) throw Error(Outcome::Inconclusive, "another export");
                     return std::make_unique<NumberWorker>(work);
                   },
                   GetParam()),
               Error);
  EXPECT_LT(work.next, 10000);
}

TEST_P(EngineTest, WorksWithTheThreadsThatCanBeHad) {
  static std::atomic<int> started;
  for (const int possible : {0, 1}) {
    started = possible;
    Work work;
    work.count = 100;
    run_workers(factory_of(work), GetParam(), [](std::function<void()> run) {
      if (started-- <= 0) throw std::system_error(EAGAIN, std::generic_category());
      return start_thread(std::move(run));
    });
    EXPECT_EQ(work.committed, numbers(100));
    EXPECT_LE(work.most_in_fetch, 1 + possible);
  }
}

class CancellingWorker : public NumberWorker {
 public:
  CancellingWorker(Work& work, Cancellation& cancellation, Outcome reason)
      : NumberWorker(work), work_(work), cancellation_(cancellation), reason_(reason) {}
  void commit() override {
    NumberWorker::commit();
    if (work_.committed.size() == 10) cancellation_.request(reason_);
  }

 private:
  Work& work_;
  Cancellation& cancellation_;
  Outcome reason_;
};

TEST_P(EngineTest, ACancellationStopsAll) {
  for (const Outcome reason : {Outcome::Interrupted, Outcome::Terminated}) {
    Cancellation cancellation;
    const CancellationScope scope(&cancellation);
    Work work;
    work.count = 100000;
    const Outcome outcome = outcome_of([&] {
      run_workers([&] { return std::make_unique<CancellingWorker>(work, cancellation, reason); }, GetParam());
    });
    EXPECT_EQ(outcome, reason);
    EXPECT_GE(work.committed.size(), 10U);
    EXPECT_LT(work.next, 1000);
  }
}

// Each has its own, also in the threads of its workers.
TEST_P(EngineTest, ACancellationStopsNobodyElse) {
  Cancellation of_another;
  std::jthread another([&] {
    const CancellationScope scope(&of_another);
    of_another.request(Outcome::Terminated);
    Work work;
    work.count = 100;
    EXPECT_EQ(outcome_of([&] { run_workers(factory_of(work), GetParam()); }), Outcome::Terminated);
  });
  Cancellation cancellation;
  const CancellationScope scope(&cancellation);
  Work work;
  work.count = 100;
  run_workers(factory_of(work), GetParam());
  EXPECT_EQ(work.committed, numbers(100));
}

TEST(CancellationTest, TheFirstReasonStays) {
  Cancellation cancellation;
  EXPECT_NO_THROW(cancellation.throw_if_requested());
  cancellation.request(Outcome::Interrupted);
  cancellation.request(Outcome::Terminated);
  EXPECT_EQ(outcome_of([&] { cancellation.throw_if_requested(); }), Outcome::Interrupted);
}

TEST(CancellationTest, TheInnermostScopeCounts) {
  Cancellation outer;
  Cancellation inner;
  const CancellationScope scope(&outer);
  inner.request(Outcome::Interrupted);
  {
    const CancellationScope inside(&inner);
    EXPECT_EQ(outcome_of([] { throw_if_cancelled(); }), Outcome::Interrupted);
  }
  EXPECT_NO_THROW(throw_if_cancelled());
}

TEST(EngineSideBySide, PiecesAreFetchedByAllThreads) {
  Work work;
  work.count = 400;
  run_workers(factory_of(work), 4);
  EXPECT_GE(work.most_in_fetch, 2);
  EXPECT_LE(work.most_in_fetch, 4);
}

}  // namespace
}  // namespace qchain::tests
