// Options as the command line sets them.
#pragma once

#include <string>
#include <vector>

#include "cli/command_line.h"

namespace qchain::tests {

/// Throws Error if the words are invalid.
template <class Options>
Options parsed(const std::vector<std::string>& words) {
  Options options;
  command_line_for(options).parse(words);
  return options;
}

}  // namespace qchain::tests
