#include "cli/libvirt/timed_call.h"

#include <fmt/format.h>
#include <pthread.h>

#include "extent/error.h"
#include "extent/cancellation.h"

namespace qchain {

void name_this_thread() noexcept { pthread_setname_np(pthread_self(), "libvirt-call"); }

void wait_for_call(const std::function<bool(std::chrono::milliseconds)>& ended, std::chrono::seconds timeout,
                   const std::string& what) {
  constexpr std::chrono::milliseconds kPoll{20};
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (!ended(kPoll)) {
    throw_if_cancelled();
    if (std::chrono::steady_clock::now() >= deadline) {
      throw Error(Outcome::Inconclusive, fmt::format("{}: no answer within {} s", what, timeout.count()));
    }
  }
  throw_if_cancelled();
}

}  // namespace qchain
