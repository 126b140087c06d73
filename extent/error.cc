#include "extent/error.h"

#include <array>
#include <cstddef>
#include <system_error>

namespace qchain {

namespace {

struct Rank {
  Outcome outcome;
  const char* word;
};

// From the least to the worst.
constexpr std::array<Rank, 9> kRanks{{
    {Outcome::Done, "done"},
    {Outcome::Incomplete, "incomplete"},
    {Outcome::Inconclusive, "inconclusive"},
    {Outcome::Io, "I/O error"},
    {Outcome::BadManifest, "bad manifest"},
    {Outcome::Mismatch, "mismatch"},
    {Outcome::Usage, "usage"},
    {Outcome::Terminated, "terminated"},
    {Outcome::Interrupted, "interrupted"},
}};

std::size_t rank_of(Outcome outcome) noexcept {
  std::size_t rank = 0;
  while (kRanks[rank].outcome != outcome) ++rank;
  return rank;
}

}  // namespace

Outcome worse(Outcome a, Outcome b) noexcept { return rank_of(a) < rank_of(b) ? b : a; }

const char* to_string(Outcome outcome) noexcept { return kRanks[rank_of(outcome)].word; }

ReadError::ReadError(const std::string& message, int error_number)
    : Error(system_error(message, error_number)) {}

Error system_error(const std::string& message, int error_number) {
  return Error(Outcome::Io, message + ": " + std::generic_category().message(error_number));
}

}  // namespace qchain
