// Checks of a pull before the first byte is read.
#pragma once

#include "cli/api/active_run.h"
#include "cli/api/qchain.h"
#include "extent/nbd_export.h"
#include "qcow2/chain.h"
#include "verify/restore_points.h"

namespace qchain {

/// Rejects invalid requests. Throws Error (Usage).
void require_valid(const PullRequest& request);
/// Checks that the dirty bitmap starts at the checkpoint of the parent. Throws Error: Usage if `since` is
/// missing, Mismatch if it differs.
void require_since(const PullRequest& request, const Layer& parent, const ActiveRun& run);
/// For a writable export: throws Error (Usage) if a read-only one is required, else warns.
void check_writable(const NbdExport& live, bool require_read_only, const ActiveRun& run);
/// Checks that the parent was pulled from the same export and disk. Throws Error (Mismatch).
void require_same_source(const PullRequest& request, const NbdExport& live, const Layer& parent);
/// Checks that all layers of the parent's chain are signed by one of the keys of `points`. Throws Error
/// (BadManifest).
void require_signed_parent(RestorePoints& points);
/// Notes about the export.
void note_about(const NbdExport& live, bool is_full, const ActiveRun& run);

}  // namespace qchain
