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

/// Makes the manifest of layer `index` complete, once all beneath it have theirs; writes it anew where
/// another tool has put the layer on another parent, or changed what it holds, and the disk is the recorded
/// one all the same. Throws Error: BadManifest where it has one that is bad or another's, ContentChanged
/// where the disk is not what was recorded; nothing is changed then.
Sealed seal_layer(RestorePoints& points, std::size_t index, const SealOptions& options);

}  // namespace qchain
