#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "extent/publication.h"
#include "qcow2/chain.h"
#include "qcow2/layer_writer.h"
#include "verify/layer_manifest.h"
#include "verify/manifest_slot.h"

namespace qchain {

/// What a new layer is to be.
struct LayerRecipe {
  std::string output;
  Existing existing = Existing::Refuse;
  RestorePoints* parent = nullptr;  ///< The chain below it; nullptr: a full layer.
  /// id, checkpoints, length, time and where it comes from; the parent and the digests are filled in.
  Identity identity;
  LayerOptions layer;  ///< Position and observer are filled in.
  bool manifest = true;
  std::optional<Algorithm> algorithm;  ///< Of the manifest; nullopt: the parent's, else sha256.
  Origin origin = Origin::Pull;
  /// Whose point in time and disk the manifest names; nullopt: those of `identity`.
  std::optional<Identity> point_of;
  const SigningKey* key = nullptr;  ///< nullptr: the manifest is not signed.
  bool sign_unproven = false;       ///< Recorded: layers below are not signed by a trusted key.
  Warn warn;
};

/// A layer and its manifest as one thing: the one recipe by which both are made, and the one order in which
/// they get their names.
///
///     data, tables | manifest | fsync | header | fsync | manifest's name by id | image's name: the commit |
///     ...
///
/// Without commit(), also after an exception, nothing is left of it.
class LayerBuild {
 public:
  /// Everything that can be refused is refused here, before the first byte is read: names, what stands under
  /// them, whether the header has room, the parent's manifest. Throws Error.
  explicit LayerBuild(LayerRecipe recipe);
  ~LayerBuild();

  /// The parent's name as the layer records it; empty: a full layer.
  const std::string& backing_name() const noexcept { return backing_name_; }
  /// Why the digest of the whole disk will not be known; empty: it will.
  const std::string& unknown_because() const noexcept { return unknown_because_; }
  Algorithm algorithm() const noexcept { return algorithm_; }
  /// May be completed until finish().
  Identity& identity() noexcept { return recipe_.identity; }
  const Identity& identity() const noexcept { return recipe_.identity; }

  /// How it is written; until write().
  LayerOptions& layer() noexcept { return recipe_.layer; }

  /// Warns where the data of `source` may be more than the file system has room for.
  void warn_if_short_of_space(BlockDevice& source) const {
    image_.warn_if_short_of_space(source.size(), extents_of(source));
  }

  /// Writes what `source` is. A second call starts over.
  const WrittenLayer& write(BlockDevice& source);
  /// Ends the manifest, and makes everything but the header durable. Returns the digest of the disk, which
  /// the identity has now; nullopt: unknown.
  std::optional<ContentDigest> finish();
  /// Makes it an image, and gives both their names. Throws Error where they have none, and nothing is left.
  void commit();

 private:
  void find_parent();
  void require_room_in_header() const;
  void require_unchanged_parent() const;
  std::unique_ptr<LayerManifest> begin_manifest();
  Header complete(Header header) const;

  LayerRecipe recipe_;
  std::string backing_name_;
  std::vector<FileStamp> parent_stamps_;
  Algorithm algorithm_ = Algorithm::Sha256;
  std::string unknown_because_;
  Publication image_;
  ManifestSlot slot_;
  std::unique_ptr<LayerManifest> manifest_;
  WrittenLayer written_;
};

/// Whether `file` is a layer of the chain, its data file, its manifest or its log of proofs, by whatever
/// name.
bool belongs_to(const Chain& chain, const FileIdentity& file);

}  // namespace qchain
