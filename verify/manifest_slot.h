#pragma once

#include <string>

#include "extent/publication.h"

namespace qchain {

/// The names beside an image that its manifest has, while the image takes its name.
///
/// Two names cannot change in one step, so a manifest is bound to its image by the layer's id, and the
/// image's own name is the commit:
///
///     IMAGE.manifest.ID   the new manifest, before the commit; or the old one, where there is no new one
///     IMAGE               the commit: one rename or link
///     IMAGE.manifest      after it; whoever reads in between finds the manifest by its id
///
/// Whatever ends it, and when, the image under its name has its manifest under one of the two names.
class ManifestSlot {
 public:
  /// Beside `image`, which has to outlive this, for layer `id`; an empty one: what is written has no
  /// manifest. Removes what interrupted runs left. Throws Error (Usage) where IMAGE.manifest must not be
  /// touched: it is no manifest, or its image is not there and nothing was said about replacing.
  ManifestSlot(Publication& image, Existing existing, std::string id, Warn warn);

  /// Where the new manifest is to be published before the commit.
  std::string path() const;
  /// The commit: gives the image its name, and its manifest, which was published as path(), the usual one.
  /// Throws Error where the image has no name; everything is as before then, as far as that is possible.
  /// After it there are only warnings.
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
  const FileIdentity inode_;  // of what is published
  std::string id_;
  Warn warn_;
  bool replaces_ = false;    // there is an IMAGE.manifest
  std::string replaced_id_;  // of the layer that it belongs to
  bool set_aside_ = false;
};

}  // namespace qchain
