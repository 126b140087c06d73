#include "cli/flat_layer.h"

#include <fmt/format.h>

#include <memory>
#include <optional>
#include <utility>

#include "cli/new_layer.h"
#include "qcow2/identity.h"
#include "verify/layer_build.h"
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

}  // namespace

FlatLayer write_flat_layer(Chain& chain, const std::string& path, const FlatLayerOptions& options) {
  FlatLayer flat;
  LayerRecipe recipe;
  recipe.output = path;
  recipe.existing = options.existing;
  recipe.identity = identity_of(chain);
  recipe.layer.workers = options.workers;
  recipe.layer.progress = options.progress;
  recipe.algorithm = options.digests != nullptr ? options.digests->top().algorithm : Algorithm::Sha256;
  recipe.warn = options.warn;
  LayerBuild build(std::move(recipe));
  FirstBytes disk(chain, build.identity().length);
  flat.written = build.write(disk, [&](WatcherFactory make_other) -> WatcherFactory {
    if (options.digests == nullptr) return make_other;
    return [make_guard = guard(chain, *options.digests, flat.unknown_bytes),
            make_other = std::move(make_other)] {
      return std::make_unique<GuardedWatcher>(make_guard(), make_other());
    };
  });
  if (options.digests != nullptr) options.digests->finish();
  flat.root = build.finish();
  if (!options.expected_root.empty() && flat.root != options.expected_root) {
    throw Error(Outcome::Mismatch, fmt::format("{}: the digest of the disk is {}, and {} was recorded",
                                               chain.name(), flat.root, options.expected_root));
  }
  build.commit();
  flat.id = build.identity().id;
  return flat;
}

}  // namespace qchain
