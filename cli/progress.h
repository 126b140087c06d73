#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

namespace qchain {

enum class ProgressStyle { Auto, Bar, Json, None };

/// Throws Error (Usage) for another name than auto, bar, json and none.
ProgressStyle progress_style_named(const std::string& name);

/// How far a command is, on standard error: a bar for people, or a JSON object a line for programs:
/// {"event":"progress","phase":"pull","done":BYTES,"total":BYTES,"elapsed":SECONDS}.
class Progress {
 public:
  /// Auto is a bar where standard error is a terminal, else nothing.
  Progress(ProgressStyle style, std::string phase, std::uint64_t total);
  /// Takes the bar away.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done` of `total` bytes. Cheap: shows something a few times a second only. The bar goes when all is
  /// done.
  void update(std::uint64_t done);
  /// update() as a function. This has to outlive it.
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
