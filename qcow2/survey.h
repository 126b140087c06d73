#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "extent/error.h"
#include "qcow2/layer.h"
#include "qcow2/policy.h"

namespace qchain {

enum class ImageFormat { Qcow2, Raw };

/// What kind of thing is wrong with a chain.
enum class ProblemKind : std::uint8_t {
  Unopenable,  ///< A layer is missing, unreadable or refused: the chain ends before it.
  NotQcow2,    ///< The same, for a file without a qcow2 header.
  Link,        ///< A layer records that it was written on another one. Its bytes can be read all the same.
};

/// What following the backing names from the top led to: the layers that could be opened, and what was
/// wrong on the way.
struct Survey {
  struct Problem {
    ProblemKind kind = ProblemKind::Unopenable;
    std::size_t layer = 0;  ///< Whose; layers.size() for one that could not be opened.
    Outcome outcome = Outcome::Done;
    std::string message;
    Remedy remedy = Remedy::None;
  };
  std::vector<Layer> layers;      ///< From the top.
  std::vector<Problem> problems;  ///< None: the chain is whole, and its links match.

  /// Whether every layer could be opened.
  bool is_whole() const;
};

/// Follows a chain as far as it goes. Throws nothing for what an image says: all of it is a Problem.
Survey survey(const std::string& path, ImageFormat format, const OpenOptions& options);

}  // namespace qchain
