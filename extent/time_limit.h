#pragma once

#include <chrono>
#include <string>

namespace qchain {

/// How long a server may take for its next answer: wall time, less the time during which this process was
/// stopped. The time between two calls of is_over() counts up to kMaxGap only, so callers that wait have to
/// call it more often.
class TimeLimit {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr Clock::duration kMaxGap = std::chrono::seconds(1);

  /// From now on, `allowed` may pass.
  void renew(Clock::duration allowed, Clock::time_point now = Clock::now()) noexcept;
  /// Checks the clock. Once over, it stays over until it is renewed.
  bool is_over(Clock::time_point now = Clock::now()) noexcept;
  Clock::duration allowed() const noexcept { return allowed_; }

 private:
  Clock::duration allowed_{};
  Clock::duration left_{};
  Clock::time_point last_look_{};
};

/// For messages: "30 s", "300 ms".
std::string to_string(TimeLimit::Clock::duration duration);

}  // namespace qchain
