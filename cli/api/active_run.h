#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "cli/api/qchain.h"
#include "extent/cancellation.h"

namespace qchain {

/// A Run in progress. Has to outlive the functions that it returns.
class ActiveRun {
 public:
  explicit ActiveRun(const Run& run)
      : run_(run), scope_(run.cancellation != nullptr ? run.cancellation : CancellationScope::current()) {}

  unsigned workers() const noexcept { return run_.workers; }
  void note(const std::string& message) const {
    if (run_.note) run_.note(message);
  }
  void warn(const std::string& message) const {
    if (run_.warn) run_.warn(message);
  }
  std::function<void(const std::string&)> warner() const {
    return [this](const std::string& message) { warn(message); };
  }
  std::function<void(std::uint64_t)> progress(const char* phase, std::uint64_t total) const {
    return [this, phase, total](std::uint64_t done) {
      if (run_.progress) run_.progress(phase, done, total);
    };
  }

 private:
  const Run& run_;
  CancellationScope scope_;
};

}  // namespace qchain
