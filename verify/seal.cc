#include "verify/seal.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "extent/pass.h"
#include "qcow2/layer_pieces.h"
#include "verify/chain_proof.h"
#include "verify/layer_manifest.h"

namespace qchain {

namespace {

ParentDigests digests_of_parent(RestorePoints& points, std::size_t index) {
  return index + 1 < points.chain().layers().size() ? parent_digests(points, index + 1) : ParentDigests{};
}

// What the layer's own digest is of, else what the manifests above and below are.
Algorithm algorithm_for(RestorePoints& points, std::size_t index, const ParentDigests& parent) {
  if (const auto digest = digest_in_header(points.chain().layers()[index])) return digest->algorithm;
  for (std::size_t above = index; above-- > 0;) {
    if (const auto manifest = points.manifest(above)) return manifest->header().algorithm;
  }
  return parent.algorithm.value_or(Algorithm::Sha256);
}

// A digest that was known must not become another one.
void require_same(const std::string& path, const std::string& what,
                  const std::optional<ContentDigest>& before, const std::optional<ContentDigest>& now) {
  if (!before || before == now) return;
  throw ContentChanged(Outcome::Mismatch,
                       fmt::format("{}: {} was {}, but is now {}; nothing was sealed", path, what,
                                   before->text(), now ? now->text() : "none"),
                       Remedy::AcceptChanged);
}

std::string id_of(const Layer& layer) {
  const std::optional<Identity> identity = layer.identity();
  return identity ? identity->id : std::string();
}

ManifestHeader header_for(RestorePoints& points, std::size_t index, const ParentDigests& parent) {
  const Chain& chain = points.chain();
  const Layer& layer = chain.layers()[index];
  ManifestHeader header;
  header.algorithm = algorithm_for(points, index, parent);
  header.length = layer.true_length();
  header.overlay = index + 1 < chain.layers().size();
  header.parent_root = parent.root;
  const std::optional<Identity> identity = layer.identity();
  if (!identity) return header;
  header.layer_id = identity->id;
  header.parent_id = identity->parent_id;
  header.checkpoint = identity->checkpoint;
  header.since = identity->since;
  const bool elsewhere = chain.has_link_problem(index);
  const bool other_parent =
      !identity->parent_digest.empty() && identity->parent_digest != text_of(parent.root);
  if (!elsewhere && !other_parent && header.overlay == identity->overlay) return header;
  header.origin = "seal";
  header.parent_id = header.overlay ? id_of(chain.layers()[index + 1]) : std::string();
  return header;
}

// The same records, with what was not known when they were written.
void complete(RestorePoints& points, std::size_t index, const std::optional<Digest>& root,
              const SealOptions& options) {
  const std::shared_ptr<const Manifest> old = points.manifest(index);
  ManifestHeader header = old->header();
  if (root) {
    header.parent_root = digests_of_parent(points, index).root;
    require_same(old->path(), "the root of the parent", old->header().parent_root, header.parent_root);
  }

  Publication publication(old->path(), Existing::Replace);
  ManifestWriter writer(publication.file(), header);
  ManifestReader reader = old->records();
  ManifestRecord record;
  while (reader.next(record)) {
    if (record.held == Held::Zeros) {
      writer.add_zeros(record.first, record.count);
      continue;
    }
    for (std::uint64_t i = 0; i < record.count; ++i) {
      writer.add(record.held, record.first + i, record.whole[i],
                 record.held == Held::Part ? record.part[i] : Digest());
    }
  }
  const Digest own = writer.finish(root);
  if (options.key != nullptr) writer.sign(options.key->sign(own));
  publication.publish();
  points.reload(index);
}

// What the disk at this layer was recorded to be: the word of the layer, else that of the manifest it had.
std::optional<ContentDigest> recorded_digest(const Layer& layer, const ManifestVerdict& before) {
  std::optional<ContentDigest> sealed;
  if (before.belongs) sealed = before.summary->disk_digest();
  if (sealed && before.summary->header.accepted) return sealed;
  const std::optional<ContentDigest> written = digest_in_header(layer);
  return written ? written : sealed;
}

// Writes the manifest, of what is there now, whose digest has to be `required`, if that is given.
// `accepted`: what the layer records and the operator does not ask for any more.
void write(RestorePoints& points, std::size_t index, const std::optional<ContentDigest>& required,
           const std::optional<ContentDigest>& accepted, const SealOptions& options) {
  const Chain& chain = points.chain();
  ParentDigests parent = digests_of_parent(points, index);
  ManifestHeader header = header_for(points, index, parent);
  if (parent.algorithm && *parent.algorithm != header.algorithm) {
    parent.digests.reset();
    header.parent_root.reset();
  }
  if (accepted) {
    header.origin = "seal";
    header.accepted = accepted;
    header.parent_id = header.overlay ? id_of(chain.layers()[index + 1]) : std::string();
  }
  const std::uint64_t parent_length = header.overlay ? chain.layers()[index + 1].true_length() : 0;
  LayerManifest manifest(manifest_of(chain.layers()[index]), header, parent_length,
                         std::move(parent.digests));
  const LayerObserver observer = manifest.observer();
  LayerPieces pieces(chain.extents_of_layer(index, header.length), observer.block_size,
                     header.overlay ? Position::Overlay : Position::Bottom, observer.also_read, {});
  Pass pass;
  pass.open_reader = [&] { return chain.open_reader_at(index); };
  pass.pieces = [&](Piece& piece) { return pieces.next(piece); };
  pass.stages = {observer.make_stage};
  pass.workers.workers = options.workers;
  pass.progress = options.progress;
  run(pass);
  const std::optional<Digest> root = manifest.finish(options.key);
  require_same(chain.layers()[index].path(), "the digest of the disk", required,
               root ? std::optional(ContentDigest{header.algorithm, *root}) : std::nullopt);
  manifest.publish();
  points.reload(index);
}

// Likewise; `before`: the manifest that the layer had.
void write(RestorePoints& points, std::size_t index, const ManifestVerdict& before,
           const SealOptions& options) {
  const Layer& layer = points.chain().layers()[index];
  // What was accepted once stays so.
  std::optional<ContentDigest> accepted;
  if (before.belongs) accepted = before.summary->header.accepted;
  try {
    write(points, index, recorded_digest(layer, before), accepted, options);
  } catch (const ContentChanged&) {
    if (!options.accept_changed) throw;
    if (!accepted) accepted = digest_in_header(layer);
    write(points, index, std::nullopt, accepted, options);
  }
}

// The blocks of a manifest as extents: Data where the layer holds all of them, Zero where it holds a part.
ExtentSource recorded_blocks(const Manifest& manifest, std::uint64_t length) {
  struct State {
    ManifestReader reader;
    std::uint64_t at = 0;  // bytes
    std::optional<Extent> pending;
    bool ended = false;
  };
  return [length,
          s = std::make_shared<State>(State{manifest.records(), 0, {}, false})]() -> std::optional<Extent> {
    if (s->pending) return std::exchange(s->pending, std::nullopt);
    if (s->ended) return std::nullopt;
    ManifestRecord record;
    s->ended = !s->reader.next(record);
    const std::uint64_t begin = s->ended ? length : std::min(length, record.first * kDigestBlock);
    const std::uint64_t end = s->ended ? length : std::min(length, record.end() * kDigestBlock);
    s->pending = Extent{guest_range(begin, end - begin), record.held == Held::Part ? Kind::Zero : Kind::Data};
    const Extent gap{{GuestOffset(s->at), GuestOffset(begin)}, Kind::Inherit};
    s->at = end;
    return gap;
  };
}

// Whether an overlay holds the blocks that its manifest says it holds, by its map alone: nothing is read.
bool holds_what_is_recorded(RestorePoints& points, std::size_t index) {
  const ManifestHeader& header = points.manifest(index)->header();
  if (!header.overlay) return true;  // a full layer may hold zeros that are not recorded
  ExtentSource wrong =
      zip(recorded_blocks(*points.manifest(index), header.length),
          points.chain().extents_of_layer(index, header.length), [](Kind recorded, Kind held) {
            const bool is_held = held != Kind::Inherit;
            const bool bad = recorded == Kind::Data ? !is_held : recorded == Kind::Inherit ? is_held : false;
            return bad ? Kind::Data : Kind::Inherit;
          });
  while (const std::optional<Extent> extent = wrong()) {
    if (extent->kind == Kind::Data && !extent->range.empty()) return false;
  }
  return true;
}

// Whether the manifest still describes the layer: where the layer is, what it holds and what is below it.
bool is_up_to_date(RestorePoints& points, std::size_t index, const std::optional<Digest>& root,
                   const SealOptions& options) {
  const ManifestVerdict& verdict = points.verdict(index);
  const ManifestSummary& summary = *verdict.summary;
  if (verdict.is_misplaced || (summary.root && root != summary.root)) return false;
  const std::optional<ContentDigest> now = digests_of_parent(points, index).root;
  const std::optional<ContentDigest>& then = summary.header.parent_root;
  if (then && now && then != now) return false;
  if (!holds_what_is_recorded(points, index)) return false;
  if (!options.accept_changed) return true;
  ProofOptions proof;
  proof.workers = options.workers;
  return prove_layer(points, index, proof).is_clean();
}

}  // namespace

Sealed seal_layer(RestorePoints& points, std::size_t index, const SealOptions& options) {
  const ManifestVerdict verdict = points.verdict(index);
  if (!verdict.exists) {
    write(points, index, verdict, options);
    return Sealed::Written;
  }
  if (!verdict.belongs) throw Error(verdict.outcome, verdict.problems.front());
  const ManifestSummary& summary = *verdict.summary;
  const bool is_signed = summary.signature.has_value();
  const bool by_this_key =
      is_signed && options.key != nullptr && options.key->sign(summary.own_digest) == *summary.signature;
  if (is_signed && options.key != nullptr && !by_this_key) {
    throw Error(Outcome::Usage,
                fmt::format("{}: is signed with another key", points.manifest(index)->path()));
  }
  const auto require_key = [&] {
    if (!is_signed || options.key != nullptr) return;
    throw Error(Outcome::Usage,
                fmt::format("{}: is signed and would lose its signature; give the key",
                            points.manifest(index)->path()),
                Remedy::NameSigningKey);
  };
  const std::optional<Digest> root = points.folded_root(index);
  if (!is_up_to_date(points, index, root, options)) {
    require_key();
    write(points, index, verdict, options);
    return Sealed::Rewritten;
  }
  if (root == summary.root && (options.key == nullptr || by_this_key)) return Sealed::Already;
  require_key();
  complete(points, index, root, options);
  return Sealed::Completed;
}

}  // namespace qchain
