#pragma once

#include <memory>
#include <span>
#include <vector>

#include "verify/manifest.h"

namespace qchain {

/// The digests of the disk at the first `wanted` layers of a chain, from its manifests alone, in one pass
/// over all of them. Takes time for each record and, for each wanted layer, each block of the disk.
/// `manifests`: of all layers, from the top to the bottom, all with the same algorithm. Throws Error
/// (BadManifest) if a file has changed since it was opened.
std::vector<Digest> fold_roots(std::span<const std::shared_ptr<const Manifest>> manifests,
                               std::size_t wanted);

}  // namespace qchain
