#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "extent/error.h"
#include "qcow2/layer.h"
#include "qcow2/policy.h"

namespace qchain {

enum class ImageFormat { Qcow2, Raw };

/// Kinds of problems with a chain.
enum class ProblemKind : std::uint8_t {
  Unopenable,  ///< A layer is missing, unreadable or refused: the chain ends before it.
  NotQcow2,    ///< The same, for a file without a qcow2 header.
  Link,        ///< The recorded parent of a layer is not its backing file. It can be read all the same.
};

/// The result of following the backing names from the top: the layers that could be opened, and the problems
/// that were found.
struct Survey {
  struct Problem {
    ProblemKind kind = ProblemKind::Unopenable;
    std::size_t layer = 0;  ///< Index of the layer; layers.size() for one that could not be opened.
    Outcome outcome = Outcome::Done;
    std::string message;
    Remedy remedy = Remedy::None;
  };
  std::vector<Layer> layers;      ///< From the top.
  std::vector<Problem> problems;  ///< Empty: the chain is complete, and its links match.

  /// Whether every layer could be opened.
  bool is_whole() const;
};

/// Follows a chain as far as possible. An image that is missing, corrupt or refused is a Problem, not an
/// exception.
Survey survey(const std::string& path, ImageFormat format, const OpenOptions& options);

}  // namespace qchain
