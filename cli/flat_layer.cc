#include "cli/flat_layer.h"

#include <fmt/format.h>

#include <memory>
#include <optional>
#include <utility>

#include "cli/new_layer.h"
#include "qcow2/identity.h"
#include "verify/layer_manifest.h"
#include "verify/proof.h"

namespace qchain {

namespace {

// Shows the pieces of a layer to two. What a bottom layer leaves out reads as zeros, and the guard is to
// know.
class GuardedWatcher : public PieceWatcher {
 public:
  GuardedWatcher(std::unique_ptr<PieceWatcher> guard, std::unique_ptr<PieceWatcher> other)
      : guard_(std::move(guard)), other_(std::move(other)) {}

  void plan(const Piece& piece, const Extents& stored) override {
    Piece whole = piece;
    for (Extent& run : whole.runs) {
      if (run.kind == Kind::Inherit) run.kind = Kind::Zero;
    }
    guard_->plan(whole, whole.runs);
    other_->plan(piece, stored);
  }
  void fetched(std::span<const ReadRequest> runs) override {
    guard_->fetched(runs);
    other_->fetched(runs);
  }
  void settle() override {
    guard_->settle();
    other_->settle();
  }

 private:
  std::unique_ptr<PieceWatcher> guard_;
  std::unique_ptr<PieceWatcher> other_;
};

Identity identity_of(const Chain& chain) {
  Identity identity;
  identity.id = random_uuid();
  const std::optional<Identity> top = chain.top().identity();
  if (top) identity.checkpoint = top->checkpoint;
  identity.length = chain.top().true_length();
  identity.time = recorded_time();
  identity.tool = "qchain " QCHAIN_VERSION;
  return identity;
}

ManifestHeader manifest_header(const Identity& identity, Algorithm algorithm) {
  ManifestHeader header;
  header.algorithm = algorithm;
  header.length = identity.length;
  header.layer_id = identity.id;
  header.checkpoint = identity.checkpoint;
  return header;
}

}  // namespace

FlatLayer write_flat_layer(Chain& chain, const std::string& path, const FlatLayerOptions& options) {
  FlatLayer flat;
  Identity identity = identity_of(chain);
  const Algorithm algorithm =
      options.digests != nullptr ? options.digests->top().algorithm : Algorithm::Sha256;
  Publication publication(path, options.existing);
  publication.bypass_cache();
  LayerManifest manifest(path, manifest_header(identity, algorithm), 0, nullptr);
  LayerOptions layer;
  layer.workers = options.workers;
  layer.progress = options.progress;
  layer.observer = manifest.observer();
  if (options.digests != nullptr) {
    layer.observer->make_watcher = [make_guard = guard(chain, *options.digests, flat.unknown_bytes),
                                    make_other = layer.observer->make_watcher] {
      return std::make_unique<GuardedWatcher>(make_guard(), make_other());
    };
  }
  FirstBytes disk(chain, identity.length);
  flat.written = write_layer(disk, publication.file(), layer);
  if (options.digests != nullptr) options.digests->finish();
  const std::optional<Digest> root = manifest.finish(nullptr);
  if (root) identity.digest = named(algorithm, *root);
  if (!options.expected_root.empty() && identity.digest != options.expected_root) {
    throw Error(Outcome::Mismatch, fmt::format("{}: the digest of the disk is {}, and {} was recorded",
                                               chain.name(), identity.digest, options.expected_root));
  }
  flat.written.header.identity = encode_identity(identity);
  publication.sync();
  write_header(publication.file(), flat.written.header);
  publish(publication, &manifest);
  flat.id = identity.id;
  flat.root = identity.digest;
  return flat;
}

}  // namespace qchain
