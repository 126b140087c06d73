#include "cli/api/text.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <string_view>
#include <utility>

#include "extent/error.h"
#include "extent/range.h"

namespace qchain {

namespace {

constexpr std::string_view kSuffixes = "KMGTPE";

// A character of UTF-8.
struct Character {
  std::size_t length = 0;  // bytes; 0: an invalid sequence
  std::uint32_t point = 0;
};

// The first character of `text`, which is not empty.
Character first_character(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto length = static_cast<std::size_t>(std::countl_one(byte(0)));
  if (length == 0) return {1, byte(0)};
  if (length < 2 || length > 4 || length > text.size()) return {};
  std::uint32_t point = byte(0) & (0x7FU >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {};
    point = point << 6 | (byte(i) & 0x3F);
  }
  constexpr std::array<std::uint32_t, 5> kLeast{0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = point >= 0xD800 && point <= 0xDFFF;
  if (point < kLeast[length] || surrogate || point > 0x10FFFF) return {};
  return {length, point};
}

// Characters that are not seen themselves, and change what is: controls, separators of lines, and Unicode's
// Default_Ignorable_Code_Point (UAX 44): direction, joining, width, variants, tags, fillers.
bool is_invisible(std::uint32_t point) {
  constexpr std::array<std::pair<std::uint32_t, std::uint32_t>, 20> kRanges{
      {{0x00, 0x1F},     {0x7F, 0x9F},       {0xAD, 0xAD},       {0x34F, 0x34F},     {0x61C, 0x61C},
       {0x115F, 0x1160}, {0x17B4, 0x17B5},   {0x180B, 0x180F},   {0x200B, 0x200F},   {0x2028, 0x202E},
       {0x2060, 0x206F}, {0x3164, 0x3164},   {0xFE00, 0xFE0F},   {0xFEFF, 0xFEFF},   {0xFFA0, 0xFFA0},
       {0xFFF0, 0xFFFB}, {0x1BCA0, 0x1BCA3}, {0x1D173, 0x1D17A}, {0xE0000, 0xE0FFF}, {0x110BD, 0x110BD}}};
  return std::ranges::any_of(
      kRanges, [&](const auto& range) { return point >= range.first && point <= range.second; });
}

std::string escape_all_but(const std::string& text, std::uint32_t kept) {
  std::string out;
  for (std::string_view rest = text; !rest.empty();) {
    const Character character = first_character(rest);
    const std::size_t length = std::max<std::size_t>(character.length, 1);
    if (character.length == 0 || (character.point != kept && is_invisible(character.point))) {
      for (const char byte : rest.substr(0, length)) {
        out += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
      }
    } else {
      out += rest.substr(0, length);
    }
    rest.remove_prefix(length);
  }
  return out;
}

}  // namespace

std::uint64_t parse_size(const std::string& text) {
  std::uint64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  std::string_view suffix(rest, static_cast<std::size_t>(end - rest));
  const auto bad = [&] {
    return Error(Outcome::Usage,
                 fmt::format("\"{}\": invalid size; give bytes, or a number with the suffix K, M, G or T",
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

std::chrono::seconds parse_duration(const std::string& text) {
  constexpr std::array<std::pair<char, std::int64_t>, 5> kUnits{
      {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}, {'w', 604800}}};
  constexpr std::int64_t kMost = std::int64_t{1} << 40;
  std::int64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  const auto unit = rest + 1 == end ? std::ranges::find(kUnits, *rest, &std::pair<char, std::int64_t>::first)
                                    : kUnits.end();
  if (error != std::errc() || unit == kUnits.end() || value < 0 || value > kMost / unit->second) {
    throw Error(Outcome::Usage,
                fmt::format("\"{}\": invalid duration; give a number with the suffix s, m, h, d "
                            "or w",
                            escaped(text)));
  }
  return std::chrono::seconds(value * unit->second);
}

unsigned parse_number(std::string_view text, unsigned least, unsigned most) {
  const std::string_view digits = text.starts_with('+') ? text.substr(1) : text;
  const char* const end = digits.data() + digits.size();
  unsigned value = 0;
  const auto [rest, error] = std::from_chars(digits.data(), end, value);
  const std::string shown = escaped(std::string(text));
  if (error == std::errc::invalid_argument || rest != end) {
    throw Error(Outcome::Usage, fmt::format("\"{}\": invalid number", shown));
  }
  if (error != std::errc() || value < least || value > most) {
    throw Error(Outcome::Usage, fmt::format("{} is out of range ({} to {})", shown, least, most));
  }
  return value;
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

std::string escaped(const std::string& text) { return escape_all_but(text, ~std::uint32_t{0}); }

std::string escaped_lines(const std::string& text) { return escape_all_but(text, '\n'); }

std::string wrapped(const std::string& text, std::size_t indent, std::size_t width) {
  const std::string margin = '\n' + std::string(indent, ' ');
  std::string out;
  std::size_t column = indent;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find_first_of(" \n", begin), text.size());
    const bool first = begin == 0;
    const bool paragraph = !first && text[begin - 1] == '\n';
    if (paragraph || (!first && column + 1 + (end - begin) > width)) {
      out += margin;
      column = indent;
    } else if (!first) {
      out += ' ';
      ++column;
    }
    out.append(text, begin, end - begin);
    column += end - begin;
    begin = end + 1;
  }
  return out + '\n';
}

std::string iso_time(std::int64_t seconds) {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(static_cast<std::time_t>(seconds)));
}

std::string accepted_text(const std::string& recorded_digest) {
  return "sealed at the operator's request although the recorded digest is different: " +
         escaped(recorded_digest);
}

}  // namespace qchain
