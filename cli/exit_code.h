#pragma once

#include "extent/error.h"

namespace qchain {

/// The exit code for an outcome.
constexpr int exit_code(Outcome outcome) noexcept {
  switch (outcome) {
    case Outcome::Done:
      return 0;
    case Outcome::Mismatch:
      return 1;
    case Outcome::Usage:
      return 2;
    case Outcome::Io:
      return 3;
    case Outcome::Incomplete:
      return 4;
    case Outcome::BadManifest:
      return 5;
    case Outcome::Inconclusive:
      return 6;
    case Outcome::Interrupted:
      return 130;
    case Outcome::Terminated:
      return 143;
  }
  return 3;
}

}  // namespace qchain
