#pragma once

#include <functional>
#include <string>

#include "verify/restore_points.h"

namespace qchain {

/// What is known of the layers that a new one is to stand on.
enum class ParentState {
  AsWritten,  ///< Nobody wrote to them since, or all that they hold is what their manifests say.
  Unproven,   ///< Somebody may have, and no manifest tells: nothing can be taken from the bitmap.
};

/// A layer's modification time is the time that its identity records. Where it is another one, the layer was
/// written to since, or copied: then all of it is read and held against its manifest. Throws Error (Mismatch)
/// where it is not what was written. `note` is told of each layer that is looked at.
ParentState check_parent(RestorePoints& parent, unsigned workers,
                         const std::function<void(const std::string&)>& note);

/// Holds `ranges` of every layer that has a manifest against it: where a bitmap seems to have missed a
/// change, it may be the parent that was changed. Throws Error (Mismatch) where it was.
void require_sound_parent(RestorePoints& parent, const Extents& ranges);

}  // namespace qchain
