// Conversion of values to and from text.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace qchain {

/// Bytes from "4096", "64K", "1M", "2G" or "16T". Throws Error (Usage).
std::uint64_t parse_size(const std::string& text);
/// "90s", "15m", "36h", "7d" or "2w". Throws Error (Usage).
std::chrono::seconds parse_duration(const std::string& text);
/// A decimal number from `least` to `most`, with an optional leading +. Throws Error (Usage).
unsigned parse_number(std::string_view text, unsigned least, unsigned most);
/// "1.5 GiB", "64 KiB", "512 bytes".
std::string human_size(std::uint64_t bytes);
/// `text` with control characters, invalid UTF-8, and whatever changes direction, width or line without being
/// seen escaped as \xNN, so that names cannot control a terminal, show as other names, or break a JSON document.
std::string escaped(const std::string& text);
/// The same, but for its line breaks.
std::string escaped_lines(const std::string& text);
/// `text`, which starts at column `indent`, wrapped between words to lines of at most `width` columns (longer
/// words are not broken), with `indent` spaces before all lines but the first and a line break at the end.
/// Keeps line breaks in `text`.
std::string wrapped(const std::string& text, std::size_t indent, std::size_t width);
/// Seconds since 1970 as "2026-11-24T18:29:17Z".
std::string iso_time(std::int64_t seconds);

/// The message that a layer was sealed although its content differs from the recorded digest.
std::string accepted_text(const std::string& recorded_digest);

}  // namespace qchain
