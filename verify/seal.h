#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "verify/restore_points.h"
#include "verify/sealed.h"

namespace qchain {

struct SealOptions {
  unsigned workers = 1;
  const SigningKey* key = nullptr;  ///< nullptr: manifests are not signed.
  std::function<void(std::uint64_t done)> progress = [](std::uint64_t) {};
  /// Seal also what is not what was recorded, on the operator's word; the manifest says so.
  bool accept_changed = false;
};

/// The disk is not what was recorded. Its outcome is Mismatch.
class ContentChanged : public Error {
 public:
  using Error::Error;
};

/// Completes the manifest of layer `index`; those of the layers below must be complete. Writes it again if
/// another tool has rebased or rewritten the layer and the disk is still the recorded one. Throws Error:
/// BadManifest if its manifest is bad or belongs to another layer, ContentChanged if the disk is not the
/// recorded one; nothing is changed then.
Sealed seal_layer(RestorePoints& points, std::size_t index, const SealOptions& options);

}  // namespace qchain
