#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

namespace qchain {

enum class ProgressStyle { Auto, Bar, Json, None };

/// auto, bar, json or none. Throws Error (Usage) for other names.
ProgressStyle progress_style_named(const std::string& name);

/// Progress on standard error: a bar for people, or one JSON object per line for programs:
/// {"event":"progress","phase":"pull","done":BYTES,"total":BYTES,"elapsed":SECONDS}.
class Progress {
 public:
  /// Auto: a bar if standard error is a terminal, else nothing.
  Progress(ProgressStyle style, std::string phase, std::uint64_t total);
  /// Removes the bar.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done` of `total` bytes. Cheap: prints only a few times per second. Removes the bar when all is done.
  void update(std::uint64_t done);
  /// update() as a function, which this has to outlive.
  std::function<void(std::uint64_t)> updater() {
    return [this](std::uint64_t done) { update(done); };
  }

 private:
  using Clock = std::chrono::steady_clock;
  void clear_bar();
  void show_bar(std::uint64_t done, double seconds);
  void show_json(std::uint64_t done, double seconds) const;

  ProgressStyle style_;
  std::string phase_;
  std::uint64_t total_;
  Clock::time_point begin_;
  Clock::time_point next_;
  bool drawn_ = false;
};

}  // namespace qchain
