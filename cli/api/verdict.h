#pragma once

#include <string>

#include "extent/error.h"

namespace qchain {

/// Something that was found.
struct Verdict {
  Outcome outcome = Outcome::Done;
  std::string message;
  Remedy remedy = Remedy::None;
};

}  // namespace qchain
