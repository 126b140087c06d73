// Randomness that can be repeated: every test of a process draws from one seed, which is printed at the start
// and with every failure. QCHAIN_SEED=NUMBER runs the same again.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace qchain::tests {

/// The seed of this process: QCHAIN_SEED, or always the same one, so that what passes passes again; tests/run
/// --soak draws new ones. Printed the first time it is asked for.
inline std::uint64_t seed() {
  static const std::uint64_t value = [] {
    const char* const given = std::getenv("QCHAIN_SEED");
    const std::uint64_t chosen = given != nullptr ? std::strtoull(given, nullptr, 0) : 1;
    std::printf("QCHAIN_SEED=%llu\n", static_cast<unsigned long long>(chosen));
    std::fflush(stdout);
    return chosen;
  }();
  return value;
}

/// Whether tests/run --soak runs the tests: everything is tried then of which a fixed sample is tried
/// otherwise.
inline bool soaking() { return std::getenv("QCHAIN_SOAK") != nullptr; }

/// How many of so many rounds a test does: all of them in a soak, a third otherwise.
inline int rounds(int all) { return soaking() ? all : (all + 2) / 3; }

class Random {
 public:
  explicit Random(std::uint64_t from) : engine_(from) {}

  /// From `least` to `most`, both included.
  std::uint64_t between(std::uint64_t least, std::uint64_t most) {
    return std::uniform_int_distribution<std::uint64_t>(least, most)(engine_);
  }
  std::uint64_t below(std::uint64_t limit) { return between(0, limit - 1); }
  unsigned bits(unsigned least, unsigned most) { return static_cast<unsigned>(between(least, most)); }
  bool chance(unsigned percent) { return below(100) < percent; }
  std::uint64_t word() { return engine_(); }
  /// A value whose number of bits is random too, so that small ones and huge ones are as likely.
  std::uint64_t any_size(unsigned most_bits = 64) {
    const unsigned width = bits(0, most_bits);
    return width == 0 ? 0 : engine_() >> (64 - width);
  }
  template <class T>
  T one_of(std::initializer_list<T> choices) {
    return *(choices.begin() + below(choices.size()));
  }
  /// Any bytes; a long run of zeros is not to be expected.
  void fill(std::span<std::byte> bytes) {
    for (std::size_t at = 0; at < bytes.size(); at += sizeof(std::uint64_t)) {
      const std::uint64_t value = engine_();
      for (std::size_t i = at; i < std::min(bytes.size(), at + sizeof(value)); ++i) {
        bytes[i] = static_cast<std::byte>(value >> (8 * (i - at)));
      }
    }
  }
  /// `length` printable characters without quotes or slashes.
  std::string text(std::size_t length) {
    std::string text(length, ' ');
    for (char& c : text) c = static_cast<char>('0' + below(75));
    std::ranges::replace(text, '\\', '_');
    return text;
  }

 private:
  std::mt19937_64 engine_;
};

/// A test with random numbers; its failures name the seed.
class RandomTest : public testing::Test {
 protected:
  Random random{seed()};

 private:
  testing::ScopedTrace trace_{__FILE__, __LINE__, "QCHAIN_SEED=" + std::to_string(seed())};
};

}  // namespace qchain::tests
