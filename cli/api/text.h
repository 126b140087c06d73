// Values as people write and read them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace qchain {

/// Bytes from "4096", "64K", "1M", "2G" or "16T". Throws Error (Usage).
std::uint64_t parse_size(const std::string& text);
/// A decimal number from `least` to `most`, which may have a + in front. Throws Error (Usage).
unsigned parse_number(std::string_view text, unsigned least, unsigned most);
/// "1.5 GiB", "64 KiB", "512 bytes".
std::string human_size(std::uint64_t bytes);
/// `text` with control bytes and invalid UTF-8 written as \xNN, so that a file's name can neither steer a
/// terminal nor break a document.
std::string escaped(const std::string& text);
/// `text` with line breaks between words, so that no line is longer than `width` (a word that is longer stays
/// whole) and all but the first begin with `indent` spaces; with one at the end. It stands at column `indent`
/// itself. Line breaks in `text` remain.
std::string wrapped(const std::string& text, std::size_t indent, std::size_t width);
/// Seconds since 1970 as "2026-11-24T18:29:17Z".
std::string iso_time(std::int64_t seconds);

/// That a layer was sealed although its content is not the recorded one, in words.
std::string accepted_text(const std::string& recorded_digest);

}  // namespace qchain
