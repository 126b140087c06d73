#include "verify/seal.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "qcow2/layer_pieces.h"
#include "verify/drill.h"
#include "verify/layer_manifest.h"

namespace qchain {

namespace {

ParentDigests beneath(const Chain& chain, std::size_t index) {
  return index + 1 < chain.layers().size() ? parent_digests(chain, index + 1) : ParentDigests{};
}

// What the layer's own digest is of, else what the manifests above and below are.
Algorithm algorithm_for(const Chain& chain, std::size_t index, const ParentDigests& parent) {
  const std::optional<Identity> identity = chain.layers()[index].identity();
  if (identity && !identity->digest.empty()) {
    return algorithm_named(identity->digest.substr(0, identity->digest.find(':')));
  }
  for (std::size_t above = index; above-- > 0;) {
    if (has_manifest(chain, above))
      return ManifestReader(manifest_of(chain.layers()[above])).header().algorithm;
  }
  return parent.algorithm.value_or(Algorithm::Sha256);
}

[[noreturn]] void refuse_change(const std::string& path, const std::string& what, const std::string& before,
                                const std::string& now) {
  throw ContentChanged(Outcome::Mismatch,
                       fmt::format("{}: {} was {}, and what is there now gives {}; nothing was sealed", path,
                                   what, before, now.empty() ? "none" : now));
}

// A digest that was known must not become another one.
void require_same(const std::string& path, const std::string& what, const std::string& before,
                  const std::string& now) {
  if (!before.empty() && before != now) refuse_change(path, what, before, now);
}

std::string id_of(const Layer& layer) {
  const std::optional<Identity> identity = layer.identity();
  return identity ? identity->id : std::string();
}

ManifestHeader header_for(const Chain& chain, std::size_t index, const ParentDigests& parent) {
  const Layer& layer = chain.layers()[index];
  ManifestHeader header;
  header.algorithm = algorithm_for(chain, index, parent);
  header.length = layer.true_length();
  header.overlay = index + 1 < chain.layers().size();
  header.parent_root = parent.root;
  const std::optional<Identity> identity = layer.identity();
  if (!identity) return header;
  header.layer_id = identity->id;
  header.parent_id = identity->parent_id;
  header.checkpoint = identity->checkpoint;
  header.since = identity->since;
  const bool elsewhere =
      std::ranges::any_of(chain.link_problems(), [&](const auto& problem) { return problem.layer == index; });
  const bool other_parent = !identity->parent_digest.empty() && identity->parent_digest != parent.root;
  if (!elsewhere && !other_parent && header.overlay == identity->overlay) return header;
  header.origin = "seal";
  header.parent_id = header.overlay ? id_of(chain.layers()[index + 1]) : std::string();
  return header;
}

// The root that follows from the manifests of layer `index` and those beneath; nullopt where they do not
// reach the bottom, or are of different algorithms.
std::optional<Digest> root_from_manifests(const Chain& chain, std::size_t index,
                                          const ManifestHeader& header) {
  const std::unique_ptr<ChainDigests> digests = digests_from(chain, index);
  if (!digests || !digests->is_complete()) return std::nullopt;
  DiskDigest disk(header.algorithm);
  digests->add_to(disk, 0, header.blocks(), header.length);
  digests->finish();
  return disk.finish();
}

// The same records, with what was not known when they were written.
void complete(const Chain& chain, std::size_t index, const ManifestSummary& old,
              const std::optional<Digest>& root, const SealOptions& options) {
  const std::string path = manifest_of(chain.layers()[index]);
  ManifestHeader header = old.header;
  if (root) {
    header.parent_root = beneath(chain, index).root;
    require_same(path, "the root of the disk beneath", old.header.parent_root, header.parent_root);
  }

  Publication publication(path, Existing::Replace);
  ManifestWriter writer(publication.file(), header);
  ManifestReader reader(path);
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
}

// What the disk at this layer was recorded to be: the word of the layer, else that of the manifest it had.
std::string recorded_digest(const Chain& chain, std::size_t index, const ManifestVerdict& before) {
  const bool known = before.belongs && before.summary->root;
  if (known && !before.summary->header.accepted.empty()) {
    return named(before.summary->header.algorithm, *before.summary->root);
  }
  const std::optional<Identity> identity = chain.layers()[index].identity();
  if (identity && !identity->digest.empty()) return identity->digest;
  return known ? named(before.summary->header.algorithm, *before.summary->root) : std::string();
}

// Writes the manifest, of what is there now, whose digest has to be `required` where that is not empty.
// `accepted`: what the layer records and the operator does not ask for any more.
void write(const Chain& chain, std::size_t index, const std::string& required, const std::string& accepted,
           const SealOptions& options) {
  ParentDigests parent = beneath(chain, index);
  ManifestHeader header = header_for(chain, index, parent);
  if (parent.algorithm && *parent.algorithm != header.algorithm) {
    parent.digests.reset();
    header.parent_root.clear();
  }
  if (!accepted.empty()) {
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
  scan([&] { return chain.open_reader_at(index); },
       [&](Piece& piece, Extents& stored) { return pieces.next(piece, stored); }, observer.make_watcher,
       {options.workers, PieceLimits{}.data, options.progress});
  const std::optional<Digest> root = manifest.finish(options.key);
  require_same(chain.layers()[index].path(), "the digest of the disk", required,
               root ? named(header.algorithm, *root) : "");
  manifest.publish();
}

// Likewise; `before` tells what the layer had.
void write(const Chain& chain, std::size_t index, const ManifestVerdict& before, const SealOptions& options) {
  // What was accepted once stays so.
  std::string accepted = before.belongs ? before.summary->header.accepted : std::string();
  try {
    write(chain, index, recorded_digest(chain, index, before), accepted, options);
  } catch (const ContentChanged&) {
    if (!options.accept_changed) throw;
    const std::optional<Identity> identity = chain.layers()[index].identity();
    if (accepted.empty() && identity) accepted = identity->digest;
    write(chain, index, {}, accepted, options);
  }
}

// The blocks of a manifest as extents: Data where the layer holds all of them, Zero where it holds a part.
ExtentSource recorded_blocks(const std::string& path, std::uint64_t length) {
  struct State {
    ManifestReader reader;
    std::uint64_t at = 0;  // bytes
    std::optional<Extent> pending;
    bool ended = false;
  };
  return [length,
          s = std::make_shared<State>(State{ManifestReader(path), 0, {}, false})]() -> std::optional<Extent> {
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
bool holds_what_is_recorded(const Chain& chain, std::size_t index, const ManifestHeader& header) {
  if (!header.overlay) return true;  // a full layer may hold zeros that are not recorded
  ExtentSource wrong =
      zip(recorded_blocks(manifest_of(chain.layers()[index]), header.length),
          chain.extents_of_layer(index, header.length), [](Kind recorded, Kind held) {
            const bool is_held = held != Kind::Inherit;
            const bool bad = recorded == Kind::Data ? !is_held : recorded == Kind::Inherit ? is_held : false;
            return bad ? Kind::Data : Kind::Inherit;
          });
  while (const std::optional<Extent> extent = wrong()) {
    if (extent->kind == Kind::Data && !extent->range.empty()) return false;
  }
  return true;
}

// Whether the manifest still says what is there: where the layer stands, what it holds and what is beneath.
bool is_up_to_date(const Chain& chain, std::size_t index, const ManifestVerdict& verdict,
                   const std::optional<Digest>& root, const SealOptions& options) {
  const ManifestSummary& summary = *verdict.summary;
  if (verdict.misfit || (summary.root && root != summary.root)) return false;
  const std::string now = beneath(chain, index).root;
  const std::string& then = summary.header.parent_root;
  if (!then.empty() && !now.empty() && then != now) return false;
  if (!holds_what_is_recorded(chain, index, summary.header)) return false;
  if (!options.accept_changed) return true;
  ProofOptions proof;
  proof.workers = options.workers;
  return prove_layer(chain, index, proof).is_clean();
}

}  // namespace

Sealed seal_layer(const Chain& chain, std::size_t index, const SealOptions& options) {
  const ManifestVerdict verdict = judge_manifest(chain, index, {}, Depth::ManifestAlone);
  if (!verdict.exists) {
    write(chain, index, verdict, options);
    return Sealed::Written;
  }
  if (!verdict.belongs) throw Error(verdict.outcome, verdict.problems.front());
  const ManifestSummary& summary = *verdict.summary;
  const bool is_signed = summary.signature.has_value();
  const bool by_this_key =
      is_signed && options.key != nullptr && options.key->sign(summary.own_digest) == *summary.signature;
  if (is_signed && options.key != nullptr && !by_this_key) {
    throw Error(Outcome::Usage,
                fmt::format("{}: is signed with another key", manifest_of(chain.layers()[index])));
  }
  const auto require_key = [&] {
    if (!is_signed || options.key != nullptr) return;
    throw Error(Outcome::Usage,
                fmt::format("{}: is signed, and would lose its signature: name the key",
                            manifest_of(chain.layers()[index])),
                Remedy::NameSigningKey);
  };
  const std::optional<Digest> root = root_from_manifests(chain, index, summary.header);
  if (!is_up_to_date(chain, index, verdict, root, options)) {
    require_key();
    write(chain, index, verdict, options);
    return Sealed::Rewritten;
  }
  if (root == summary.root && (options.key == nullptr || by_this_key)) return Sealed::Already;
  require_key();
  complete(chain, index, summary, root, options);
  return Sealed::Completed;
}

}  // namespace qchain
