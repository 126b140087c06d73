#pragma once

#include <string>

#include "extent/publication.h"

namespace qchain {

/// Publishes an image together with its manifest.
///
/// Two files cannot be renamed atomically, so a manifest is bound to its image by the layer's id, and
/// publishing the image is the commit:
///
///     IMAGE.manifest.ID   before the commit: the new manifest, or the old one if there is no new one
///     IMAGE               the commit: one rename or link
///     IMAGE.manifest      after the commit; until then, readers find the manifest by its id
///
/// Whenever the process is interrupted, the manifest of the image is found under one of the two names.
class ManifestSlot {
 public:
  /// For layer `id` in `image`, which has to outlive this; an empty id: the output has no manifest. Removes
  /// files left by interrupted runs. Throws Error (Usage) if IMAGE.manifest must not be replaced: it is not a
  /// manifest, or its image does not exist and `existing` is Refuse.
  ManifestSlot(Publication& image, Existing existing, std::string id, Warn warn);

  /// The path to publish the new manifest at before publish().
  std::string path() const;
  /// Publishes the image, and renames its manifest from path() to the usual name. Throws Error if the image
  /// could not be published; the previous state is then restored as far as possible. Failures after the
  /// commit are only warnings.
  void publish();

 private:
  void prepare();
  void withdraw() noexcept;
  void install_manifest() noexcept;
  std::string stale_manifest() const;
  void look_at_manifest(Existing existing);
  void remove_leftovers() const;
  void warn(const std::string& message) const noexcept;

  Publication& image_;
  const FileIdentity inode_;  // of the file that is published
  std::string id_;
  Warn warn_;
  bool replaces_ = false;    // IMAGE.manifest exists
  std::string replaced_id_;  // the layer that it belongs to
  bool set_aside_ = false;
};

}  // namespace qchain
