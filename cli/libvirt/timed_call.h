#pragma once

#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>

namespace qchain {

/// Waits until `ended` says true, asking it with the time it may wait itself. Throws Error: Inconclusive,
/// saying that `what` has not ended, after `timeout`; Interrupted or Terminated within a second of a signal;
/// and what thread creation may throw.
void wait_for_call(const std::function<bool(std::chrono::milliseconds)>& ended, std::chrono::seconds timeout,
                   const std::string& what);

/// Names the thread "libvirt-call", for debuggers and ps.
void name_this_thread() noexcept;

/// Runs a call that cannot be cancelled, such as a remote procedure call, in a thread of its own, and returns
/// or throws what it does. Where that takes too long, this throws as wait_for_call() does, and the call goes
/// on without anybody: so it has to own everything that it touches.
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
