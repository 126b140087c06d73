// Values as people write and read them.
#pragma once

#include <cstdint>
#include <string>

namespace qchain {

/// Bytes from "4096", "64K", "1M", "2G" or "16T". Throws Error (Usage), naming `option`.
std::uint64_t parse_size(const std::string& text, const std::string& option);
/// "1.5 GiB", "64 KiB", "512 bytes".
std::string human_size(std::uint64_t bytes);
/// `text` with control bytes and invalid UTF-8 written as \xNN, so that a file's name can neither steer a
/// terminal nor break a document.
std::string escaped(const std::string& text);
/// Seconds since 1970 as "2026-11-24T18:29:17Z".
std::string iso_time(std::int64_t seconds);

}  // namespace qchain
