#include "cli/api/flat_layer.h"

#include <fmt/format.h>

#include <memory>
#include <optional>
#include <utility>

#include "cli/api/new_layer.h"
#include "qcow2/identity.h"
#include "verify/layer_build.h"

namespace qchain {

namespace {

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

FlatLayer write_flat_layer(const Chain& chain, BlockDevice& source, const std::string& path,
                           const FlatLayerOptions& options) {
  LayerRecipe recipe;
  recipe.output = path;
  recipe.existing = options.existing;
  recipe.identity = identity_of(chain);
  recipe.layer.workers = options.workers;
  recipe.layer.progress = options.progress;
  recipe.layer.stages = options.stages;
  recipe.algorithm = options.algorithm;
  recipe.origin = Origin::Restore;
  recipe.point_of = chain.top().identity().value_or(Identity());
  recipe.warn = options.warn;
  LayerBuild build(std::move(recipe));
  FirstBytes disk(source, build.identity().length);
  build.warn_if_short_of_space(disk);
  FlatLayer flat;
  flat.written = build.write(disk);
  flat.digest = build.finish();
  if (options.expected_digest && flat.digest != options.expected_digest) {
    throw Error(Outcome::Mismatch,
                fmt::format("{}: the digest of the disk is {}, but {} was recorded", chain.name(),
                            text_of(flat.digest), options.expected_digest->text()));
  }
  build.commit();
  flat.id = build.identity().id;
  return flat;
}

}  // namespace qchain
