// How far the dirty bitmap is trusted, and what happens when it has missed a change.
#pragma once

#include <string>

#include "cli/api/active_run.h"
#include "cli/api/open_chain.h"
#include "cli/api/qchain.h"
#include "extent/nbd_export.h"
#include "verify/layer_build.h"

namespace qchain {

struct IncrementResult {
  WrittenLayer written;
  std::uint64_t missed_bytes = 0;
  std::string checked;  ///< How much of the clean ranges was compared.
};

/// Writes what changed since `parent` into `build`. If the bitmap turns out to have missed a change, starts
/// over and compares everything, or throws, depending on the request. Throws Error (Mismatch) if this is
/// another disk, or the parent was modified.
IncrementResult write_increment(const PullRequest& request, NbdExport& live, OpenedChain& parent,
                                LayerBuild& build, const ActiveRun& run);

}  // namespace qchain
