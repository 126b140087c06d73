#include "verify/seal.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <utility>

#include "extent/pass.h"
#include "qcow2/layer_pieces.h"
#include "verify/chain_proof.h"
#include "verify/layer_manifest.h"
#include "verify/signature.h"

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

// Of a layer as it is in the chain now.
ManifestHeader header_now(RestorePoints& points, std::size_t index, const ParentDigests& parent,
                          const std::string& time) {
  const Chain& chain = points.chain();
  const Layer& layer = chain.layers()[index];
  const std::optional<Identity> identity = layer.identity();
  ManifestHeader header = header_for(identity.value_or(Identity()), Origin::Seal);
  header.algorithm = algorithm_for(points, index, parent);
  header.length = layer.true_length();
  header.overlay = index + 1 < chain.layers().size();
  header.parent_root = parent.root;
  header.sealed_time = time;
  header.file = std::filesystem::path(layer.path()).filename();
  if (!identity) return header;
  const bool other_parent =
      !identity->parent_digest.empty() && identity->parent_digest != text_of(parent.root);
  header.is_resealed = chain.has_link_problem(index) || other_parent || header.overlay != identity->overlay;
  if (header.is_resealed)
    header.parent_id = header.overlay ? id_of(chain.layers()[index + 1]) : std::string();
  return header;
}

// Copies the records of a manifest.
void copy(ManifestReader reader, ManifestWriter& writer) {
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
}

// What the disk at this layer was recorded to be: the word of the layer, else that of the manifest it had.
std::optional<ContentDigest> recorded_digest(const Layer& layer, const ManifestVerdict& before) {
  std::optional<ContentDigest> sealed;
  if (before.belongs) sealed = before.summary->disk_digest();
  if (sealed && before.summary->header.accepted) return sealed;
  const std::optional<ContentDigest> written = digest_in_header(layer);
  return written ? written : sealed;
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

}  // namespace

// One call of add().
class ChainSeal::LayerSeal {
 public:
  LayerSeal(ChainSeal& seal, std::size_t index)
      : seal_(seal),
        points_(seal.points_),
        options_(seal.options_),
        index_(index),
        layer_(points_.chain().layers()[index]),
        before_(points_.verdict(index)) {}

  Sealed add() {
    if (!before_.exists) {
      seal_.is_made_[index_] = true;
      write();
      return Sealed::Written;
    }
    if (!before_.belongs) throw Error(before_.outcome, before_.problems.front());
    const ManifestSummary& summary = *before_.summary;
    find_signer();
    const std::optional<Digest> root = points_.folded_root(index_);
    if (!is_up_to_date(root)) {
      require_key();
      write();
      return Sealed::Rewritten;
    }
    const bool lacks_signature = options_.key != nullptr && !summary.signature;
    if (root == summary.root && !lacks_signature) return Sealed::Already;
    require_key();
    complete(root, lacks_signature);
    return Sealed::Completed;
  }

 private:
  ParentDigests digests_of_parent() const { return qchain::digests_of_parent(points_, index_); }

  // Whose signature the manifest has.
  void find_signer() {
    const std::optional<ManifestSignature>& signature = before_.summary->signature;
    if (!signature || options_.key == nullptr) return;
    const Digest& own = before_.summary->own_digest;
    is_by_this_key_ = options_.key->public_key().accepts(*signature, own);
    if (is_by_this_key_) return;
    for (const TrustedKey& key : options_.trusted) {
      if (key.accepts(*signature, own)) return;
    }
    throw Error(Outcome::Usage, fmt::format("{}: is signed with another key", path()), Remedy::TrustKey);
  }

  // Throws where the manifest is to be changed, and is signed by somebody else.
  void require_key() const {
    if (!before_.summary->signature || is_by_this_key_) return;
    throw Error(Outcome::Usage,
                fmt::format("{}: is signed and would lose its signature; give the key", path()),
                Remedy::NameSigningKey);
  }

  const std::string& path() const { return points_.manifest(index_)->path(); }

  // Whether the manifest still describes the layer: where the layer is, what it holds and what is below it.
  bool is_up_to_date(const std::optional<Digest>& root) {
    const ManifestSummary& summary = *before_.summary;
    if (before_.is_misplaced || (summary.root && root != summary.root)) return false;
    const std::optional<ContentDigest> now = digests_of_parent().root;
    const std::optional<ContentDigest>& then = summary.header.parent_root;
    if (then && now && then != now) return false;
    if (!holds_what_is_recorded(points_, index_)) return false;
    return !options_.accept_changed || proof().is_clean();
  }

  Proof proof() {
    ProofOptions proof;
    proof.workers = options_.workers;
    proof.progress = options_.progress;
    return prove_layer(points_, index_, proof);
  }

  // The same records, with what was not known when they were written.
  void complete(const std::optional<Digest>& root, bool is_first_signature) {
    const std::shared_ptr<const Manifest> old = points_.manifest(index_);
    ManifestHeader header = old->header();
    if (root) {
      header.parent_root = digests_of_parent().root;
      require_same(path(), "the root of the parent", old->header().parent_root, header.parent_root);
    }
    if (is_first_signature) vouch_for(header);
    auto publication = std::make_unique<Publication>(path(), Existing::Replace);
    ManifestWriter writer(publication->file(), header);
    copy(old->records(), writer);
    const Digest own = writer.finish(root);
    if (options_.key != nullptr) writer.sign(options_.key->sign(own));
    keep(std::move(publication));
  }

  // Who signs what nobody signed before vouches for what is there now: it is read, and the manifest says so.
  void vouch_for(ManifestHeader& header) {
    require_signable(header, path());
    const Proof found = proof();
    if (!found.is_clean()) {
      throw Error(worse(found.different_bytes != 0 ? Outcome::Mismatch : Outcome::Done, found.unread_outcome),
                  fmt::format("{}: is not what its manifest records; nothing was sealed. Run 'qchain verify' "
                              "for details",
                              layer_.path()));
    }
    header.origin = Origin::Seal;
    header.sealed_time = options_.time;
    header.file = std::filesystem::path(layer_.path()).filename();
  }

  // Makes the manifest of what is there now, which has to be what was recorded.
  void write() {
    // What was accepted once stays so.
    std::optional<ContentDigest> accepted;
    if (before_.belongs) accepted = before_.summary->header.accepted;
    try {
      write(recorded_digest(layer_, before_), accepted);
    } catch (const ContentChanged&) {
      if (!options_.accept_changed) throw;
      if (!accepted) accepted = digest_in_header(layer_);
      write(std::nullopt, accepted);
    }
  }

  // What is there now has to have the digest `required`, if that is given. `accepted`: what the layer records
  // and the operator does not ask for any more.
  void write(const std::optional<ContentDigest>& required, const std::optional<ContentDigest>& accepted) {
    const Chain& chain = points_.chain();
    ParentDigests parent = digests_of_parent();
    ManifestHeader header = header_now(points_, index_, parent, options_.time);
    if (options_.key != nullptr) require_signable(header, layer_.path());
    if (!options_.accept_changed) require_known_parent(parent);
    if (parent.algorithm && *parent.algorithm != header.algorithm) {
      parent.digests.reset();
      header.parent_root.reset();
    }
    if (accepted) {
      header.is_resealed = true;
      header.accepted = accepted;
      header.parent_id = header.overlay ? id_of(chain.layers()[index_ + 1]) : std::string();
    }
    const std::uint64_t parent_length = header.overlay ? chain.layers()[index_ + 1].true_length() : 0;
    LayerManifest manifest(manifest_of(layer_), header, parent_length, std::move(parent.digests));
    const LayerObserver observer = manifest.observer();
    LayerPieces pieces(chain.extents_of_layer(index_, header.length), observer.block_size,
                       header.overlay ? Position::Overlay : Position::Bottom, observer.also_read, {});
    Pass pass;
    pass.open_reader = [&] { return chain.open_reader_at(index_); };
    pass.pieces = [&](Piece& piece) { return pieces.next(piece); };
    pass.stages = {observer.make_stage};
    pass.workers.workers = options_.workers;
    pass.progress = options_.progress;
    run(pass);
    const std::optional<Digest> root = manifest.finish(options_.key);
    require_same(layer_.path(), "the digest of the disk", required,
                 root ? std::optional(ContentDigest{header.algorithm, *root}) : std::nullopt);
    keep(manifest.release());
  }

  // The parent's root that is recorded here has to be that of the layer below, if it is the same layer still,
  // or if its manifest is made in this run: nothing else may tell that it has changed.
  void require_known_parent(const ParentDigests& parent) const {
    if (!parent.root) return;
    const Layer& below = points_.chain().layers()[index_ + 1];
    const bool is_new = seal_.is_made_[index_ + 1];
    const auto is_same = [&](const std::string& id) { return is_new || (!id.empty() && id == id_of(below)); };
    if (before_.belongs && is_same(before_.summary->header.parent_id)) {
      require_same(below.path(), "the digest of the disk", before_.summary->header.parent_root, parent.root);
    }
    const std::optional<Identity> identity = layer_.identity();
    if (identity && !identity->parent_digest.empty() && is_same(identity->parent_id)) {
      require_same(below.path(), "the digest of the disk", ContentDigest::parse(identity->parent_digest),
                   parent.root);
    }
  }

  void keep(std::unique_ptr<Publication> manifest) {
    const auto file = std::make_shared<const File>(manifest->file().duplicate(manifest->path()));
    seal_.manifests_.push_back(std::move(manifest));
    points_.replace(index_, file);
  }

  ChainSeal& seal_;
  RestorePoints& points_;
  const SealOptions& options_;
  const std::size_t index_;
  const Layer& layer_;
  const ManifestVerdict before_;
  bool is_by_this_key_ = false;
};

Sealed ChainSeal::add(std::size_t index) { return LayerSeal(*this, index).add(); }

void ChainSeal::publish() {
  for (const std::unique_ptr<Publication>& manifest : manifests_) manifest->sync();
  for (std::size_t i = 0; i < manifests_.size(); ++i) {
    try {
      manifests_[i]->publish();
    } catch (const Error& error) {
      if (i == 0) throw;
      throw error.with(
          fmt::format("; {} of {} manifests were published; each is right: seal the chain again "
                      "for the rest",
                      i, manifests_.size()));
    }
  }
  manifests_.clear();
}

}  // namespace qchain
