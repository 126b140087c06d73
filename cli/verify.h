#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/console.h"
#include "cli/options.h"
#include "verify/proof.h"

namespace qchain {

/// qchain verify: verifies a chain, from its manifests or against the live export.
struct VerifyOptions {
  CommonOptions common;
  NbdOptions nbd;
  std::string image;
  std::string against;  ///< URI of a live export to compare with; empty: none.
  OwnerOptions owner;   ///< With `against`: the owner of its backup job.
  bool manifest_only = false;
  bool no_extents = false;
  Selection selection;                        ///< --sample, --only.
  std::optional<std::uint64_t> max_duration;  ///< Seconds.
  std::vector<std::string> trust_keys;        ///< Paths.
  PointDemand point;
  bool record = false;
  bool seal = false;
  bool accept_changed = false;       ///< With --seal.
  std::string sign_key;              ///< Path, for --seal.
  std::vector<std::string> combine;  ///< Paths of reports to combine; then nothing is verified.
};

/// The command line for `options`, which has to outlive it.
CommandLine command_line_for(VerifyOptions& options);
Outcome verify(const VerifyOptions& options, Console& console);

}  // namespace qchain
