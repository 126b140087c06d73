#include "verify/layer_manifest.h"

#include <fmt/format.h>
#include <unistd.h>

#include <utility>

#include "verify/drill.h"

namespace qchain {

ParentDigests parent_digests(const Chain& chain, std::size_t index) {
  ParentDigests parent;
  const std::string& path = chain.layers()[index].path();
  const ManifestVerdict verdict = judge_manifest(chain, index, {});
  if (!verdict.exists) {
    parent.unknown_because =
        fmt::format("{} has no manifest; qchain verify --seal writes the missing ones", path);
    return parent;
  }
  if (verdict.outcome != Outcome::Done && verdict.outcome != Outcome::Incomplete) {
    throw Error(verdict.outcome,
                fmt::format("{}; take another parent, or begin a new chain with a full image",
                            verdict.problems.front()));
  }
  const ManifestSummary& summary = *verdict.summary;
  parent.algorithm = summary.header.algorithm;
  if (!summary.root) {
    parent.unknown_because =
        fmt::format("the root of {} is unknown; qchain verify --seal finds it out", path);
    return parent;
  }
  if (!verdict.root_follows) {
    parent.unknown_because = verdict.problems.front();
    return parent;
  }
  parent.root = named(summary.header.algorithm, *summary.root);
  parent.digests = digests_from(chain, index);
  return parent;
}

LayerManifest::LayerManifest(const std::string& image, const ManifestHeader& header,
                             std::uint64_t parent_length, std::unique_ptr<ChainDigests> beneath)
    : publication_(manifest_path(image), Existing::Replace),
      replaces_(access(manifest_path(image).c_str(), F_OK) == 0),
      algorithm_(header.algorithm),
      builder_(publication_.file(), header, parent_length, std::move(beneath)) {}

std::optional<Digest> LayerManifest::finish(const SigningKey* key) {
  const ManifestBuilder::Finished finished = builder_.finish();
  if (key != nullptr) builder_.sign(key->sign(finished.own_digest));
  publication_.sync();
  return finished.root;
}

void LayerManifest::publish() { publication_.publish(); }

void LayerManifest::retract() noexcept {
  if (!replaces_) unlink(publication_.path().c_str());
}

}  // namespace qchain
