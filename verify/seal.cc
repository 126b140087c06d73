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

// A digest that was known must not become another one.
void require_same(const std::string& path, const char* what, const std::string& before,
                  const std::string& now) {
  if (before.empty() || before == now) return;
  throw Error(Outcome::Mismatch,
              fmt::format("{}: {} was {}, and what is there now gives {}; nothing was sealed", path, what,
                          before, now.empty() ? "none" : now));
}

ManifestHeader header_for(const Chain& chain, std::size_t index, const ParentDigests& parent) {
  const Layer& layer = chain.layers()[index];
  ManifestHeader header;
  header.algorithm = algorithm_for(chain, index, parent);
  header.length = layer.true_length();
  header.overlay = index + 1 < chain.layers().size();
  header.parent_root = parent.root;
  if (const std::optional<Identity> identity = layer.identity()) {
    header.layer_id = identity->id;
    header.parent_id = identity->parent_id;
    header.checkpoint = identity->checkpoint;
    header.since = identity->since;
  }
  return header;
}

// The root that follows from the manifests of layer `index` and those beneath; nullopt where they do not
// reach the bottom, or are of different algorithms.
std::optional<Digest> root_from_manifests(const Chain& chain, std::size_t index,
                                          const ManifestHeader& header) {
  const std::unique_ptr<ChainDigests> digests = digests_from(chain, index);
  if (!digests->is_complete()) return std::nullopt;
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

void write(const Chain& chain, std::size_t index, const SealOptions& options) {
  ParentDigests parent = beneath(chain, index);
  ManifestHeader header = header_for(chain, index, parent);
  if (parent.algorithm && *parent.algorithm != header.algorithm) {
    parent.digests.reset();
    header.parent_root.clear();
  }
  const std::uint64_t parent_length = header.overlay ? chain.layers()[index + 1].true_length() : 0;
  LayerManifest manifest(manifest_of(chain.layers()[index]), header, parent_length, std::move(parent.digests));
  const LayerObserver observer = manifest.observer();
  LayerPieces pieces(chain.extents_of_layer(index, header.length), observer.block_size,
                     header.overlay ? Position::Overlay : Position::Bottom, observer.also_read, {});
  scan([&] { return chain.open_reader_at(index); },
       [&](Piece& piece, Extents& stored) { return pieces.next(piece, stored); }, observer.make_watcher,
       {options.workers, PieceLimits{}.data, options.progress});
  const std::optional<Digest> root = manifest.finish(options.key);
  const std::optional<Identity> identity = chain.layers()[index].identity();
  require_same(chain.layers()[index].path(), "the digest of the disk", identity ? identity->digest : "",
               root ? named(header.algorithm, *root) : "");
  manifest.publish();
}

}  // namespace

Sealed seal_layer(const Chain& chain, std::size_t index, const SealOptions& options) {
  const ManifestVerdict verdict = judge_manifest(chain, index, {}, Depth::ManifestAlone);
  if (!verdict.exists) {
    write(chain, index, options);
    return Sealed::Written;
  }
  if (verdict.outcome != Outcome::Done) throw Error(verdict.outcome, verdict.problems.front());
  const ManifestSummary& summary = *verdict.summary;
  const bool is_signed = summary.signature.has_value();
  const bool by_this_key =
      is_signed && options.key != nullptr && options.key->sign(summary.own_digest) == *summary.signature;
  if (is_signed && options.key != nullptr && !by_this_key) {
    throw Error(Outcome::Usage,
                fmt::format("{}: is signed with another key", manifest_of(chain.layers()[index])));
  }
  const std::optional<Digest> root = root_from_manifests(chain, index, summary.header);
  if (summary.root) {
    require_same(chain.layers()[index].path(), "its root", named(summary.header.algorithm, *summary.root),
                 root ? named(summary.header.algorithm, *root) : "");
  }
  if (root == summary.root && (options.key == nullptr || by_this_key)) return Sealed::Already;
  if (is_signed && options.key == nullptr) {
    throw Error(Outcome::Usage,
                fmt::format("{}: is signed, and would lose its signature: name the key with --sign-key",
                            manifest_of(chain.layers()[index])));
  }
  complete(chain, index, summary, root, options);
  return Sealed::Completed;
}

}  // namespace qchain
