// The metadata check: is what the tables of a chain say consistent, and is all of it there?
//
// Beside what qemu-img check looks at, it finds what that misses: files that end inside data,
// inside a compressed stream or inside a table, refcounts past the end of the file, payloads that
// do not decode, structures that overlap although the refcounts fit. Memory is bounded by
// constants: tables are read through small buffers, references are counted in windows, findings are
// merged and capped.
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
  std::vector<std::string> notes;      ///< Worth knowing, and no finding.
  std::vector<std::string> unchecked;  ///< What could not be checked, in words.
  std::uint64_t file_bytes = 0;
  std::uint64_t cluster_bytes = 0;  ///< Of one cluster; 0 for a raw base.
  std::uint64_t used_clusters = 0;  ///< Host clusters with references.
  std::uint64_t decoded_payloads = 0;

  /// Mismatch where the format is broken, with `strict` also where space is lost; Incomplete where
  /// something could not be checked.
  Outcome outcome(bool strict) const;
};

struct CheckReport {
  std::vector<LayerCheck> layers;  ///< From the top.
  /// What was wrong with the chain itself: layers that are not there or cannot be read, links that
  /// do not fit.
  std::vector<Survey::Problem> problems;

  Outcome outcome(bool strict) const;
};

/// Checks the metadata of one layer. Throws Error (Io) where it cannot be read.
LayerCheck check_layer(const Layer& layer, Payloads payloads);

/// Checks every layer of a chain, as far as it could be followed.
CheckReport check_chain(const Survey& survey, Payloads payloads);

}  // namespace qchain
