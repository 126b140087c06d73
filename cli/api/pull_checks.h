// What a pull refuses before the first byte is read.
#pragma once

#include "cli/api/active_run.h"
#include "cli/api/qchain.h"
#include "extent/nbd_export.h"
#include "qcow2/chain.h"

namespace qchain {

/// What no combination of other things can make right. Throws Error (Usage).
void require_valid(const PullRequest& request);
/// The changes have to count from the point in time that the parent is. Throws Error: Usage where that is
/// not said; Mismatch.
void require_since(const PullRequest& request, const Layer& parent, const ActiveRun& run);
/// Throws Error (Usage) where a writable export was not wanted; warns of it otherwise.
void check_writable(const NbdExport& live, bool require_read_only, const ActiveRun& run);
/// The parent has to come from where the new layer comes from. Throws Error (Mismatch).
void require_same_source(const PullRequest& request, const NbdExport& live, const Layer& parent);
/// Notes what there is to know of the export.
void note_about(const NbdExport& live, bool is_full, const ActiveRun& run);

}  // namespace qchain
