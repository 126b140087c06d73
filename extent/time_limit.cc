#include "extent/time_limit.h"

#include <fmt/format.h>

#include <algorithm>

namespace qchain {

void TimeLimit::renew(Clock::duration allowed, Clock::time_point now) noexcept {
  allowed_ = left_ = allowed;
  last_look_ = now;
}

bool TimeLimit::is_over(Clock::time_point now) noexcept {
  left_ -= std::clamp(now - last_look_, Clock::duration::zero(), kMaxGap);
  last_look_ = now;
  return left_ <= Clock::duration::zero();
}

std::string to_string(TimeLimit::Clock::duration duration) {
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(duration).count();
  return ms % 1000 == 0 ? fmt::format("{} s", ms / 1000) : fmt::format("{} ms", ms);
}

}  // namespace qchain
