#include "extent/interrupt.h"

#include <atomic>
#include <csignal>

#include "extent/error.h"

namespace qchain {

namespace {
std::atomic<int> requested_signal{0};
static_assert(std::atomic<int>::is_always_lock_free);
}  // namespace

void request_interrupt(int signal_number) noexcept { requested_signal = signal_number; }

void throw_if_interrupted() {
  switch (requested_signal) {
    case 0:
      return;
    case SIGINT:
      throw Error(Outcome::Interrupted, "interrupted");
    default:
      throw Error(Outcome::Terminated, "terminated");
  }
}

}  // namespace qchain
