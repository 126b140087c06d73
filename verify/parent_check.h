#pragma once

#include <functional>
#include <string>

#include "verify/restore_points.h"

namespace qchain {

/// The state of the layers that are to back a new one.
enum class ParentState {
  AsWritten,  ///< They were not written to since they were made, or they match their manifests.
  Unproven,   ///< They may have been written to and have no manifest: the bitmap cannot be relied on.
};

/// Checks whether the layers were written to. The modification time of a layer is the time in its identity;
/// if it differs, the layer was written to or copied since, and is read and compared with its manifest.
/// Throws Error (Mismatch) if it does not match. Calls `note` for each such layer.
ParentState check_parent(RestorePoints& parent, unsigned workers,
                         const std::function<void(const std::string&)>& note);

/// Compares `ranges` of every layer with its manifest, if it has one: when a bitmap seems to have missed a
/// change, the parent may have been modified instead. Throws Error (Mismatch) if it was.
void require_sound_parent(RestorePoints& parent, const Extents& ranges);

}  // namespace qchain
