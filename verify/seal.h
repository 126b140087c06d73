#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "extent/publication.h"
#include "verify/restore_points.h"
#include "verify/sealed.h"

namespace qchain {

struct SealOptions {
  unsigned workers = 1;
  const SigningKey* key = nullptr;  ///< nullptr: manifests are not signed.
  std::function<void(std::uint64_t done)> progress = [](std::uint64_t) {};
  /// Seal also what is not what was recorded, on the operator's word; the manifest says so.
  bool accept_changed = false;
  /// Manifests that are signed with one of these keep their signature.
  std::vector<TrustedKey> trusted = {};
  std::string time = {};  ///< Of what is sealed: ISO 8601, UTC.
};

/// The disk is not what was recorded. Its outcome is Mismatch.
class ContentChanged : public Error {
 public:
  using Error::Error;
};

/// The manifests that a chain lacks: all are made and compared with all that is recorded before the first one
/// gets its name, because a manifest below a layer that contradicts it would make damage look sound.
class ChainSeal {
 public:
  /// `points` has to outlive it, and has the new manifests from add() on.
  ChainSeal(RestorePoints& points, const SealOptions& options)
      : points_(points), options_(options), is_made_(points.chain().layers().size()) {}

  /// Completes the manifest of layer `index`; those of the layers below must be complete. Makes a new one if
  /// there is none, or if another tool has rebased or rewritten the layer and the disk is still the recorded
  /// one. What gets its first signature is compared with its digests before. Throws Error: BadManifest if its
  /// manifest is bad or belongs to another layer, ContentChanged if the disk is not the recorded one, Usage
  /// if a signature would be lost or prove nothing.
  Sealed add(std::size_t index);
  /// Gives all of them their names, from the bottom up.
  void publish();

 private:
  class LayerSeal;

  RestorePoints& points_;
  const SealOptions& options_;
  std::vector<bool> is_made_;  // of layers that had no manifest
  std::vector<std::unique_ptr<Publication>> manifests_;
};

}  // namespace qchain
