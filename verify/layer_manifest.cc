#include "verify/layer_manifest.h"

#include <fmt/format.h>

#include <tuple>
#include <utility>

namespace qchain {

namespace {

// Without an identity in the image, only the times show whether the manifest is still valid.
bool was_written_after(const Layer& layer, const Manifest& manifest) {
  const FileStamp written = layer.file().stamp();
  const FileStamp sealed = manifest.stamp();
  return std::tie(written.seconds, written.nanoseconds) > std::tie(sealed.seconds, sealed.nanoseconds);
}

}  // namespace

ParentDigests parent_digests(RestorePoints& points, std::size_t index) {
  ParentDigests parent;
  const Layer& layer = points.chain().layers()[index];
  const std::string& path = layer.path();
  const ManifestVerdict verdict = points.verdict_with_root(index);
  if (!verdict.exists) {
    parent.unknown_because =
        fmt::format("{} has no manifest; seal the chain to write the missing ones", path);
    return parent;
  }
  if (verdict.outcome == Outcome::Incomplete) {
    parent.algorithm = verdict.summary->header.algorithm;
    parent.unknown_because = verdict.problems.front();
    return parent;
  }
  if (verdict.outcome != Outcome::Done) {
    throw Error(verdict.outcome, fmt::format("{}; use another parent, or start a new chain with a full image",
                                             verdict.problems.front()));
  }
  const ManifestSummary& summary = *verdict.summary;
  parent.algorithm = summary.header.algorithm;
  if (!summary.root) {
    parent.unknown_because = fmt::format("the root of {} is unknown; seal the chain to compute it", path);
    return parent;
  }
  if (!layer.identity() && was_written_after(layer, *points.manifest(index))) {
    parent.unknown_because =
        fmt::format("{} was written to after it was sealed; remove its manifest and seal it again", path);
    return parent;
  }
  parent.root = summary.disk_digest();
  parent.digests = points.digests(index);
  return parent;
}

ManifestHeader header_for(const Identity& identity, Origin origin) {
  ManifestHeader header;
  header.length = identity.length;
  header.overlay = identity.overlay;
  header.layer_id = identity.id;
  header.parent_id = identity.parent_id;
  header.checkpoint = identity.checkpoint;
  header.since = identity.since;
  header.origin = origin;
  name_point(header, identity);
  return header;
}

void name_point(ManifestHeader& header, const Identity& identity) {
  header.time = identity.time;
  header.export_name = identity.export_name;
  header.domain = identity.domain;
  header.target = identity.target;
}

LayerManifest::LayerManifest(const std::string& path, const ManifestHeader& header,
                             std::uint64_t parent_length, std::unique_ptr<ChainDigests> parent, Warn warn)
    : publication_(std::make_unique<Publication>(path, Existing::Replace, std::move(warn))),
      algorithm_(header.algorithm),
      builder_(publication_->file(), header, parent_length, std::move(parent)) {}

std::optional<Digest> LayerManifest::finish(const SigningKey* key) {
  const ManifestBuilder::Finished finished = builder_.finish();
  if (key != nullptr) builder_.sign(key->sign(finished.own_digest));
  publication_->sync();
  return finished.root;
}

}  // namespace qchain
