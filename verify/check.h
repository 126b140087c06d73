// The metadata check: whether the tables of a chain are consistent, and nothing they refer to is missing.
//
// It also finds what qemu-img check misses: files that end inside data, a compressed stream or a table,
// refcounts past the end of the file, compressed clusters that do not decompress, structures that overlap
// although the refcounts match. Memory use is bounded: tables are read through small buffers, references are
// counted in windows, findings are merged and capped.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "extent/error.h"
#include "qcow2/chain.h"
#include "verify/entry_checker.h"
#include "verify/finding.h"

namespace qchain {

/// What was found in one layer.
struct LayerCheck {
  std::string path;
  std::string format;  ///< "qcow2", "raw".
  FindingList findings;
  std::vector<std::string> notes;      ///< Information that is not a finding.
  std::vector<std::string> unchecked;  ///< What could not be checked; messages.
  std::uint64_t file_bytes = 0;
  std::uint64_t cluster_bytes = 0;  ///< Cluster size; 0 for a raw base.
  std::uint64_t used_clusters = 0;  ///< Host clusters with references.
  std::uint64_t decoded_payloads = 0;

  /// Mismatch if the format is violated or, with `strict`, clusters are leaked; Incomplete if something could
  /// not be checked.
  Outcome outcome(bool strict) const;
};

struct CheckReport {
  std::vector<LayerCheck> layers;  ///< From the top.
  /// Problems of the chain itself: layers that are missing or unreadable, links that do not match.
  std::vector<Survey::Problem> problems;

  Outcome outcome(bool strict) const;
};

/// Checks the metadata of one layer. Throws Error (Io) if it cannot be read.
LayerCheck check_layer(const Layer& layer, Payloads payloads);

/// Checks every layer that the survey found.
CheckReport check_chain(const Survey& survey, Payloads payloads);

}  // namespace qchain
