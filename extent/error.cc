#include "extent/error.h"

#include <algorithm>
#include <system_error>

namespace qchain {

Outcome worse(Outcome a, Outcome b) noexcept { return std::max(a, b); }

const char* to_string(Outcome outcome) noexcept {
  switch (outcome) {
    case Outcome::Done:
      return "done";
    case Outcome::Incomplete:
      return "incomplete";
    case Outcome::Inconclusive:
      return "inconclusive";
    case Outcome::Io:
      return "I/O error";
    case Outcome::BadManifest:
      return "bad manifest";
    case Outcome::Mismatch:
      return "mismatch";
    case Outcome::Usage:
      return "usage";
    case Outcome::Terminated:
      return "terminated";
    case Outcome::Interrupted:
      return "interrupted";
  }
  return "?";
}

ReadError::ReadError(const std::string& message, int error_number)
    : Error(system_error(message, error_number)) {}

bool is_local(const Error& error) noexcept {
  return error.outcome() == Outcome::Mismatch || dynamic_cast<const ReadError*>(&error) != nullptr;
}

Error system_error(const std::string& message, int error_number) {
  return Error(Outcome::Io, message + ": " + std::generic_category().message(error_number));
}

}  // namespace qchain
