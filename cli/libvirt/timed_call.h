#pragma once

#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>

namespace qchain {

/// Waits until `ended` returns true; passes it the time that it may wait. Throws Error: Inconclusive after
/// `timeout`, with `what` in the message; Interrupted or Terminated within a second of a signal; and what
/// thread creation may throw.
void wait_for_call(const std::function<bool(std::chrono::milliseconds)>& ended, std::chrono::seconds timeout,
                   const std::string& what);

/// Names the thread "libvirt-call", for debuggers and ps.
void name_this_thread() noexcept;

/// Runs a call that cannot be cancelled, such as a remote procedure call, in its own thread, and returns or
/// throws its result. If it takes too long, throws like wait_for_call(), and the call continues in the
/// background: it has to own everything that it uses.
template <class Call>
auto timed_call(Call call, std::chrono::seconds timeout, const std::string& what) -> decltype(call()) {
  std::packaged_task<decltype(call())()> task([call = std::move(call)]() mutable {
    name_this_thread();
    return call();
  });
  auto result = task.get_future();
  std::thread(std::move(task)).detach();
  wait_for_call(
      [&](std::chrono::milliseconds wait) { return result.wait_for(wait) == std::future_status::ready; },
      timeout, what);
  return result.get();
}

}  // namespace qchain
