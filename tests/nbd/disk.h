// Shared by the NBD tests: the bytes of a disk, and helpers to read them.
#pragma once

#include <gmock/gmock.h>

#include <chrono>
#include <cstdint>
#include <string>

#include "extent/block_device.h"
#include "extent/error.h"
#include "extent/nbd_connection.h"
#include "tests/support.h"

namespace qchain::tests {

inline constexpr std::uint64_t kKiB = std::uint64_t{1} << 10;
inline constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

/// A disk on which no byte is zero, and no two places are alike.
Bytes disk_bytes(std::uint64_t size);
/// Bytes [begin, begin + length) of `disk`.
Bytes slice(const Bytes& disk, std::uint64_t begin, std::uint64_t length);

/// A target with a time-out that is short, but not so short that a busy machine meets it.
NbdTarget target_of(const std::string& uri, std::chrono::milliseconds timeout = std::chrono::seconds(5));
/// A time-out for servers that are to meet it.
inline constexpr std::chrono::milliseconds kSoon{300};

/// Reads `length` bytes at `begin` as one request. The buffer is full of 0xEE before, so that bytes which
/// were never fetched show.
Bytes read(Reader& reader, std::uint64_t begin, std::uint64_t length);
/// All of `device`, by one reader, in requests of 1 MiB.
Bytes read_all(BlockDevice& device);

void write_text(const std::string& path, const std::string& text);

/// Seconds since it was made.
class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

/// EXPECT_THAT([&] { work(); }, Fails(Outcome::Io, "what() holds this"))
MATCHER_P2(Fails, outcome, words, std::string("fails with ") + to_string(outcome)) {
  try {
    arg();
  } catch (const Error& error) {
    *result_listener << "which fails with " << to_string(error.outcome()) << ": " << error.what();
    return error.outcome() == outcome && std::string(error.what()).find(words) != std::string::npos;
  }
  *result_listener << "which does not fail";
  return false;
}

}  // namespace qchain::tests
