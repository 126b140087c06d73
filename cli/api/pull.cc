#include <fmt/format.h>

#include <bit>
#include <optional>

#include "cli/api/active_run.h"
#include "cli/api/nbd_access.h"
#include "cli/api/open_chain.h"
#include "cli/api/pull_checks.h"
#include "cli/api/pull_increment.h"
#include "cli/api/qchain.h"
#include "cli/api/new_layer.h"
#include "qcow2/format.h"
#include "verify/layer_build.h"

namespace qchain {

namespace {

constexpr std::size_t kMaxRecordedName = 128;  // the identity is limited to 1 KiB in total

Changes changes_for(const PullRequest& r) {
  if (r.parent.empty()) return {};
  if (r.shallow) return {Changes::Source::AllocationDepth, {}};
  return {Changes::Source::DirtyBitmap, r.bitmap};
}

Identity identity_for(const PullRequest& r, const NbdExport& live) {
  Identity identity;
  identity.id = r.layer_id.empty() ? random_uuid() : r.layer_id;
  identity.checkpoint = r.checkpoint;
  identity.since = r.since;
  identity.length = live.size();
  identity.time = recorded_time();
  identity.tool = "qchain " QCHAIN_VERSION;
  if (live.export_name().size() <= kMaxRecordedName) identity.export_name = live.export_name();
  const OwnedDisk* const disk = r.owner != nullptr ? r.owner->disk() : nullptr;
  if (disk != nullptr) {
    identity.domain = disk->domain_uuid;
    identity.target = disk->target;
  }
  identity.point = point_in_time(r.owner);
  identity.source = source_of(live);
  return identity;
}

unsigned cluster_bits_for(const PullRequest& r, const Layer* parent) {
  if (r.cluster_size != 0) return static_cast<unsigned>(std::countr_zero(r.cluster_size));
  if (parent == nullptr || parent->image() == nullptr) return kDefaultClusterBits;
  const unsigned bits = parent->image()->header().cluster_bits;
  return bits >= kMinWrittenClusterBits ? bits : kDefaultClusterBits;
}

LayerRecipe recipe_for(const PullRequest& r, NbdExport& live, OpenedChain* parent, const SigningKey* key,
                       const ActiveRun& run) {
  LayerRecipe recipe;
  recipe.output = r.output;
  recipe.existing = r.replace ? Existing::Replace : Existing::Refuse;
  if (parent != nullptr) recipe.parent = &parent->points;
  recipe.identity = identity_for(r, live);
  recipe.layer.cluster_bits = cluster_bits_for(r, parent != nullptr ? &parent->chain->top() : nullptr);
  recipe.layer.extended_l2 = r.extended_l2;
  recipe.layer.compression = parse_compression(r.compression);
  if (r.extended_l2 && recipe.layer.cluster_bits < kMinExtendedL2ClusterBits) {
    throw Error(Outcome::Usage,
                fmt::format("extended L2 entries need clusters of at least {} bytes",
                            1U << kMinExtendedL2ClusterBits),
                Remedy::LargerClusters);
  }
  recipe.layer.workers = worker_count(r.nbd, run.workers(), live, Work::ReadAndWrite);
  recipe.layer.progress = run.progress("pull", live.size());
  recipe.manifest = r.digest != "none";
  if (recipe.manifest && !r.digest.empty()) recipe.algorithm = algorithm_named(r.digest);
  recipe.key = key;
  recipe.sign_unproven = r.sign_unproven;
  recipe.warn = run.warner();
  return recipe;
}

void tell_about(const LayerBuild& build, const PullRequest& r, const ActiveRun& run) {
  if (build.backing_name().starts_with("../")) {
    run.note(
        "the parent is outside the output's directory: to read the chain, its directory has to be "
        "allowed as a backing root");
  }
  if (!build.unknown_because().empty()) {
    run.warn(fmt::format("the digest of the whole disk will be unknown: {}", build.unknown_because()));
  }
  if (r.digest != "none" && !is_cryptographic(build.algorithm())) {
    run.note(fmt::format("{} detects corruption, not tampering", to_string(build.algorithm())));
  }
}

PullResult result_of(const PullRequest& r, const NbdExport& live, const LayerBuild& build,
                     const IncrementResult& increment) {
  const WrittenLayer& written = increment.written;
  const Identity& identity = build.identity();
  PullResult result;
  result.output = r.output;
  if (r.digest != "none") result.manifest = manifest_path(r.output);
  result.is_signed = !r.sign_key.empty();
  result.is_increment = !r.parent.empty();
  result.bitmap = live.bitmap();
  result.virtual_size = written.header.virtual_size;
  result.cluster_size = std::uint64_t{1} << written.header.cluster_bits;
  result.data_bytes = written.data_bytes;
  result.zero_bytes = written.zero_bytes;
  result.inherited_bytes = written.inherited_bytes;
  result.compressed_clusters = written.compressed_clusters;
  result.read_bytes = written.read_bytes;
  result.file_bytes = written.file_bytes;
  result.missed_bytes = increment.missed_bytes;
  result.clean_checked = increment.checked;
  result.layer_id = identity.id;
  result.parent_id = identity.parent_id;
  result.digest = identity.digest;
  result.parent_digest = identity.parent_digest;
  result.source = identity.source;
  result.export_name = identity.export_name;
  result.point_in_time = identity.point;
  return result;
}

// The keys that have to have signed the layers below; none: they need no signature.
std::vector<TrustedKey> keys_below(const PullRequest& r, const SigningKey* key) {
  if (key == nullptr || r.sign_unproven) return {};
  std::vector<TrustedKey> keys = trusted_keys(r.trust_keys);
  keys.push_back(key->public_key());
  return keys;
}

std::optional<OpenedChain> open_parent(const PullRequest& r, const SigningKey* key, const ActiveRun& run) {
  if (r.parent.empty()) return std::nullopt;
  const ImageFormat format = r.parent_is_raw ? ImageFormat::Raw : ImageFormat::Qcow2;
  std::vector<TrustedKey> keys = keys_below(r, key);
  const bool is_demanded = !keys.empty();
  std::optional<OpenedChain> parent(
      open_chain(r.parent, format, r.open, Links::Require, run, Remedy::ParentIsRaw, std::move(keys)));
  if (is_demanded) require_signed_parent(parent->points);
  require_since(r, parent->chain->top(), run);
  return parent;
}

IncrementResult write_full(const PullRequest& r, NbdExport& live, LayerBuild& build) {
  OpaqueDevice opaque(live);
  return {build.write(r.no_extents ? static_cast<BlockDevice&>(opaque) : live), 0, {}};
}

}  // namespace

PullResult pull(const PullRequest& r, const Run& how) {
  const ActiveRun run(how);
  require_valid(r);
  std::optional<SigningKey> key;
  if (!r.sign_key.empty()) key.emplace(r.sign_key);
  std::optional<OpenedChain> parent = open_parent(r, key ? &*key : nullptr, run);
  NbdExport live(nbd_target(r.nbd, r.uri), changes_for(r));
  check_writable(live, r.require_read_only, run);
  if (parent) require_same_source(r, live, parent->chain->top());
  note_about(live, !parent, run);
  LayerBuild build(recipe_for(r, live, parent ? &*parent : nullptr, key ? &*key : nullptr, run));
  tell_about(build, r, run);
  build.warn_if_short_of_space(live);
  const IncrementResult written =
      parent ? write_increment(r, live, *parent, build, run) : write_full(r, live, build);
  warn_about_recovery(live, run);
  build.identity().checked = written.checked;
  // All data is durable before the header is written, and the export is confirmed after the last read.
  build.finish();
  require_point_in_time(live, r.owner);
  build.commit();
  return result_of(r, live, build, written);
}

}  // namespace qchain
