#include "cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "cli/api/text.h"
#include "extent/error.h"

namespace qchain {

namespace {

constexpr std::chrono::milliseconds kInterval{200};
constexpr std::size_t kBarWidth = 30;
constexpr std::array<std::pair<std::string_view, ProgressStyle>, 4> kStyles{{
    {"auto", ProgressStyle::Auto},
    {"bar", ProgressStyle::Bar},
    {"json", ProgressStyle::Json},
    {"none", ProgressStyle::None},
}};

}  // namespace

ProgressStyle progress_style_named(const std::string& name) {
  for (const auto& [known, style] : kStyles) {
    if (known == name) return style;
  }
  throw Error(Outcome::Usage,
              fmt::format("\"{}\": invalid style; choose auto, bar, json or none", escaped(name)));
}

Progress::Progress(ProgressStyle style, std::string phase, std::uint64_t total)
    : style_(style), phase_(std::move(phase)), total_(total), begin_(Clock::now()), next_(begin_) {
  if (style_ == ProgressStyle::Auto) {
    style_ = isatty(STDERR_FILENO) != 0 ? ProgressStyle::Bar : ProgressStyle::None;
  }
}

Progress::~Progress() { clear_bar(); }

void Progress::clear_bar() {
  if (drawn_) std::fputs("\r\033[K", stderr);
  drawn_ = false;
}

void Progress::update(std::uint64_t done) {
  if (style_ == ProgressStyle::None) return;
  const Clock::time_point now = Clock::now();
  if (now < next_ && done < total_) return;
  next_ = now + kInterval;
  const double seconds = std::chrono::duration<double>(now - begin_).count();
  if (style_ == ProgressStyle::Json) {
    show_json(done, seconds);
  } else {
    show_bar(done, seconds);
  }
}

void Progress::show_bar(std::uint64_t done, double seconds) {
  if (done >= total_) return clear_bar();
  const double part = static_cast<double>(done) / static_cast<double>(total_);
  const auto filled = static_cast<std::size_t>(part * static_cast<double>(kBarWidth));
  std::string line = fmt::format("\r\033[K{} [{:#<{}}{:.<{}}] {:3.0f}% of {}", phase_, "", filled, "",
                                 kBarWidth - filled, part * 100, human_size(total_));
  if (part > 0.01 && seconds > 1) {
    line += fmt::format(", {:.0f} s left", seconds / part - seconds);
  }
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
  drawn_ = true;
}

void Progress::show_json(std::uint64_t done, double seconds) const {
  nlohmann::ordered_json line;
  line["event"] = "progress";
  line["phase"] = phase_;
  line["done"] = done;
  line["total"] = total_;
  line["elapsed"] = seconds;
  std::fputs((line.dump() + '\n').c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace qchain
