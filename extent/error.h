// Failure, as callers and exit codes see it.
//
// There are two channels: work that cannot go on throws Error, which main() alone catches; corruption
// that a check was asked to look for is a value and is never thrown.
#pragma once

#include <stdexcept>
#include <string>

namespace qchain {

/// How a command ends. The values are the process exit codes of the contract.
enum class Outcome {
  Done = 0,          ///< Done, and proven where proof was asked.
  Mismatch = 1,      ///< Mismatch or corruption; an identity that does not fit.
  Usage = 2,         ///< The command line asks for what cannot be.
  Io = 3,            ///< I/O error; something is unreachable, unreadable or not there.
  Incomplete = 4,    ///< Something was skipped or could not be checked.
  BadManifest = 5,   ///< A manifest or its signature is bad.
  Inconclusive = 6,  ///< The live side is changing, or is no longer the same job.
  Interrupted = 130,
  Terminated = 143,
};

/// The verdict that two verdicts make together: 1 before 5 before 3 before 6 before 4 before 0.
/// An interruption or a usage error outranks them all: nothing was proven at all.
Outcome worse(Outcome a, Outcome b) noexcept;

/// The word for an outcome in messages and reports, such as "mismatch".
const char* to_string(Outcome outcome) noexcept;

/// Work that cannot go on. what() names the file, the offset and the value, and what to do.
class Error : public std::runtime_error {
 public:
  Error(Outcome outcome, const std::string& message) : std::runtime_error(message), outcome_(outcome) {}
  Outcome outcome() const noexcept { return outcome_; }

 private:
  Outcome outcome_;
};

/// Some bytes cannot be read; others of the same disk may well be. Its outcome is Io.
class ReadError : public Error {
 public:
  ReadError(const std::string& message, int error_number);
};

/// An Io error that ends with the words for `error_number`, an errno value.
Error system_error(const std::string& message, int error_number);

}  // namespace qchain
