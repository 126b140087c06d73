#include "cli/text.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <array>
#include <charconv>
#include <nlohmann/json.hpp>
#include <string_view>

#include "extent/error.h"
#include "extent/range.h"

namespace qchain {

namespace {

constexpr std::string_view kSuffixes = "KMGTPE";

// The length of the UTF-8 sequence at the beginning of `text`; 0 where there is no valid one.
std::size_t utf8_length(std::string_view text) {
  constexpr std::size_t kLongest = 4;
  for (std::size_t length = 1; length <= kLongest && length <= text.size(); ++length) {
    const std::string candidate(text.substr(0, length));
    // The JSON library validates UTF-8 strictly; a sequence that it takes is one.
    try {
      (void)nlohmann::json(candidate).dump();
      return length;
    } catch (const nlohmann::json::exception&) {
      continue;
    }
  }
  return 0;
}

}  // namespace

std::uint64_t parse_size(const std::string& text, const std::string& option) {
  std::uint64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  std::string_view suffix(rest, static_cast<std::size_t>(end - rest));
  const auto bad = [&] {
    return Error(Outcome::Usage,
                 fmt::format("{}: \"{}\" is no size; write bytes, or a number with K, M, G or T", option,
                             escaped(text)));
  };
  if (error != std::errc()) throw bad();
  if (suffix.empty()) return value;
  const std::size_t power =
      kSuffixes.find(static_cast<char>(std::toupper(static_cast<unsigned char>(suffix.front()))));
  suffix.remove_prefix(1);
  if (power == std::string_view::npos || !(suffix.empty() || suffix == "iB")) throw bad();
  const std::uint64_t unit = std::uint64_t{1} << (10 * (power + 1));
  if (value > ~std::uint64_t{0} / unit) throw bad();
  return value * unit;
}

std::string human_size(std::uint64_t bytes) {
  if (bytes < 1024) return fmt::format("{} bytes", bytes);
  double value = static_cast<double>(bytes);
  std::size_t power = 0;
  while (value >= 1024 && power < kSuffixes.size()) {
    value /= 1024;
    ++power;
  }
  std::string number = fmt::format("{:.1f}", value);
  if (number.ends_with(".0")) number.resize(number.size() - 2);
  return fmt::format("{} {}iB", number, kSuffixes[power - 1]);
}

std::string escaped(const std::string& text) {
  std::string out;
  for (std::string_view rest = text; !rest.empty();) {
    const auto byte = static_cast<unsigned char>(rest.front());
    const std::size_t length = utf8_length(rest);
    const bool control =
        byte < 0x20 || byte == 0x7F ||
        (byte == 0xC2 && rest.size() > 1 && static_cast<unsigned char>(rest[1]) < 0xA0);  // C1 controls
    if (length == 0 || control) {
      out += fmt::format("\\x{:02x}", byte);
      rest.remove_prefix(1);
      continue;
    }
    out += rest.substr(0, length);
    rest.remove_prefix(length);
  }
  return out;
}

std::string iso_time(std::int64_t seconds) {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(static_cast<std::time_t>(seconds)));
}

}  // namespace qchain
