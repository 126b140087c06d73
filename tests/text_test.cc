// Printed text: names from images and servers cannot affect a terminal or a JSON document.
#include "cli/api/text.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tests/random.h"

namespace qchain::tests {
namespace {

class TextTest : public RandomTest {
 protected:
  static std::string in_json(const std::string& text) { return nlohmann::json(text).dump(); }
  // The JSON library is strict about UTF-8.
  static bool is_utf8(const std::string& text) {
    try {
      return !in_json(text).empty();
    } catch (const nlohmann::json::exception&) {
      return false;
    }
  }
};

TEST_F(TextTest, EscapedIsUtf8WithoutControls) {
  for (int round = 0; round < 20000; ++round) {
    std::string text(random.below(12), '\0');
    // Mostly of the bytes that sequences begin with, go on with, and break off at.
    for (char& byte : text) {
      byte = static_cast<char>(
          random.chance(30) ? random.bits(0, 255)
                            : random.one_of<unsigned>({0x20, 0x41, 0x7F, 0x80, 0x9F, 0xA0, 0xBF, 0xC0, 0xC2,
                                                       0xE0, 0xE2, 0xED, 0xEF, 0xF0, 0xF4, 0xF5}));
    }
    const std::string shown = escaped(text);
    EXPECT_TRUE(is_utf8(shown)) << shown;
    for (const char byte : shown) EXPECT_FALSE(static_cast<unsigned char>(byte) < 0x20 || byte == 0x7F);
    EXPECT_EQ(shown.find("\xC2\x9B"), std::string::npos);  // a control sequence in one character
    if (shown == text) continue;
    bool controls = !is_utf8(text);
    // What such characters begin with.
    for (const char* const begin :
         {"\xC2\xAD", "\xCD\x8F", "\xD8\x9C", "\xE1\x85", "\xE1\x9E", "\xE1\xA0", "\xE2\x80", "\xE2\x81",
          "\xE3\x85", "\xEF\xB8", "\xEF\xBB", "\xEF\xBE", "\xEF\xBF", "\xF0", "\xF3\xA0"}) {
      controls = controls || text.find(begin) != std::string::npos;
    }
    for (std::size_t i = 0; i < text.size(); ++i) {
      const auto byte = static_cast<unsigned char>(text[i]);
      controls = controls || byte < 0x20 || byte == 0x7F ||
                 (byte == 0xC2 && static_cast<unsigned char>(text[i + 1]) < 0xA0);
    }
    EXPECT_TRUE(controls) << "changed without need: " << shown;
  }
}

TEST_F(TextTest, EscapedLeavesWordsOfAllScriptsAlone) {
  for (const std::string text :
       {"", "plain", "три", "日本", "\U0001F4BE", "~\u00a0\uD7FF\uE000\uFFFF\U0010FFFF"}) {
    EXPECT_EQ(escaped(text), text);
  }
  EXPECT_EQ(escaped("a\nb\x1b[1m"), "a\\x0ab\\x1b[1m");
  EXPECT_EQ(escaped("\xED\xA0\x80"), "\\xed\\xa0\\x80");  // a surrogate
}

TEST_F(TextTest, EscapedHidesNothing) {
  EXPECT_EQ(escaped("a\u202Eb"), "a\\xe2\\x80\\xaeb");
  for (const std::string bad :
       {"\u0085", "\u00AD", "\u034F", "\u061C", "\u115F",     "\u17B4",     "\u180E",     "\u200B",
        "\u200F", "\u2028", "\u2029", "\u202A", "\u2060",     "\u2066",     "\u206F",     "\u3164",
        "\uFE0F", "\uFEFF", "\uFFA0", "\uFFF9", "\U0001D173", "\U000E0001", "\U000E007F", "\U000E0100"}) {
    const std::string shown = escaped("x" + bad + "y");
    EXPECT_TRUE(std::ranges::all_of(shown, [](char c) { return c >= ' ' && c <= '~'; })) << shown;
    EXPECT_EQ(shown.size(), 2 + 4 * bad.size());
    EXPECT_EQ(escaped(shown), shown);
  }
  EXPECT_EQ(escaped_lines("a\nb\r\u2028"), "a\nb\\x0d\\xe2\\x80\\xa8");
}

TEST_F(TextTest, EscapedTakesNamesOfAnyLength) {
  // An image can have a thousand names of 64 KiB.
  const std::string name(1 << 20, '\xFF');
  EXPECT_EQ(escaped(name).size(), 4 * name.size());
}

}  // namespace
}  // namespace qchain::tests
