#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "cli/api/qchain.h"
#include "cli/console.h"
#include "cli/progress.h"

namespace qchain {

/// A Run that reports to a console. Removes its progress bar when destroyed.
class ConsoleRun {
 public:
  explicit ConsoleRun(Console& console) : console_(console) {
    run_.note = [this](const std::string& message) { console_.note(message); };
    run_.warn = [this](const std::string& message) { console_.warn(message); };
    run_.progress = [this](const char* phase, std::uint64_t done, std::uint64_t total) {
      show(phase, done, total);
    };
  }
  ConsoleRun(const ConsoleRun&) = delete;
  ConsoleRun& operator=(const ConsoleRun&) = delete;

  operator const Run&() const noexcept { return run_; }

  /// Takes the bar away, before something is printed. The next phase, or the same once more, has a new one.
  void end_phase() { progress_.reset(); }

 private:
  void show(const char* phase, std::uint64_t done, std::uint64_t total) {
    if (!progress_ || phase_ != phase || done < done_) {
      progress_.emplace(console_.progress_style(), phase, total);
      phase_ = phase;
    }
    done_ = done;
    progress_->update(done);
  }

  Console& console_;
  Run run_;
  std::optional<Progress> progress_;
  std::string phase_;
  std::uint64_t done_ = 0;
};

}  // namespace qchain
