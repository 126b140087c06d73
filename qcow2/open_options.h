#pragma once

#include <string>
#include <vector>

namespace qchain {

/// How the files of a chain may be opened.
struct OpenOptions {
  std::vector<std::string> backing_roots;  ///< Backing files may be below these directories too.
  bool force_share = false;                ///< Read images although another program writes to them.
  bool allow_data_file = false;            ///< Follow the names of external data files.
};

}  // namespace qchain
