// What the commands that write a layer have in common.
#pragma once

#include <string>

#include "extent/publication.h"
#include "verify/layer_manifest.h"

namespace qchain {

/// The time that a layer records; SOURCE_DATE_EPOCH makes it reproducible. Throws Error (Usage) where that is
/// no number.
std::string recorded_time();

/// Gives an image and its manifest their names; nullptr: it has none, and none may stay behind under that
/// name. Throws Error.
void publish(Publication& image, LayerManifest* manifest);

}  // namespace qchain
