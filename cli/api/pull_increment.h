// How far a dirty bitmap is trusted, and what happens when it is caught missing a change.
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
  std::string checked;  ///< What of the clean ranges was compared.
};

/// Writes what changed since `parent` into `build`. One contradiction between bitmap and parent, and it
/// starts over, with everything read and compared, or throws, as the request wants it. Throws Error
/// (Mismatch) where it is another disk, or the parent is not what was written.
IncrementResult write_increment(const PullRequest& request, NbdExport& live, OpenedChain& parent, LayerBuild& build,
                                const ActiveRun& run);

}  // namespace qchain
