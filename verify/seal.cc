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

// The algorithm in which a layer's new manifest is of use: that of the digest which the layer records, or of
// the manifests beneath, or of those above.
Algorithm algorithm_for(const Chain& chain, std::size_t index, const ParentDigests& parent) {
  const std::optional<Identity> identity = chain.layers()[index].identity();
  if (identity && !identity->digest.empty()) {
    try {
      return algorithm_named(identity->digest.substr(0, identity->digest.find(':')));
    } catch (const Error&) {
      throw Error(Outcome::Incomplete,
                  fmt::format("{}: records the digest {}, which this version cannot compute",
                              chain.layers()[index].path(), identity->digest));
    }
  }
  if (parent.algorithm) return *parent.algorithm;
  for (std::size_t above = index; above-- > 0;) {
    if (!has_manifest(chain, above)) continue;
    return ManifestReader(manifest_path(chain.layers()[above].path())).header().algorithm;
  }
  return Algorithm::Sha256;
}

ManifestHeader header_for(const Chain& chain, std::size_t index, const ParentDigests& parent) {
  const Layer& layer = chain.layers()[index];
  ManifestHeader header;
  header.algorithm = algorithm_for(chain, index, parent);
  header.length = layer.true_length();
  header.overlay = index + 1 < chain.layers().size();
  if (header.algorithm == parent.algorithm) header.parent_root = parent.root;
  if (const std::optional<Identity> identity = layer.identity()) {
    header.layer_id = identity->id;
    header.parent_id = identity->parent_id;
    header.checkpoint = identity->checkpoint;
    header.since = identity->since;
  }
  return header;
}

// The root that follows from the manifests of layer `index` and those beneath; nullopt where they are of
// different algorithms.
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
  const std::string path = manifest_path(chain.layers()[index].path());
  ManifestHeader header = old.header;
  if (!old.root && root) header.parent_root = beneath(chain, index).root;

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
  const ManifestHeader header = header_for(chain, index, parent);
  const std::uint64_t parent_length = header.overlay ? chain.layers()[index + 1].true_length() : 0;
  if (header.algorithm != parent.algorithm) parent.digests.reset();
  const std::string& path = chain.layers()[index].path();
  LayerManifest manifest(path, header, parent_length, std::move(parent.digests));
  const LayerObserver observer = manifest.observer();
  LayerPieces pieces(chain.extents_of_layer(index, header.length), observer.block_size,
                     header.overlay ? Position::Overlay : Position::Bottom, observer.also_read, {});
  scan([&] { return chain.open_reader_at(index); },
       [&](Piece& piece, Extents& stored) { return pieces.next(piece, stored); }, observer.make_watcher,
       {options.workers, PieceLimits{}.data, options.progress});
  const std::optional<Digest> root = manifest.finish(options.key);
  const std::optional<Identity> identity = chain.layers()[index].identity();
  if (root && identity && !identity->digest.empty() && named(header.algorithm, *root) != identity->digest) {
    throw Error(
        Outcome::Mismatch,
        fmt::format("{}: is damaged, or a layer beneath it is: the disk's digest is {}, and when it was "
                    "written it was {}; no manifest is written of that",
                    path, named(header.algorithm, *root), identity->digest));
  }
  manifest.publish();
}

}  // namespace

Sealed seal_layer(const Chain& chain, std::size_t index, const SealOptions& options) {
  const ManifestVerdict verdict = judge_manifest(chain, index, {});
  if (!verdict.exists) {
    write(chain, index, options);
    return Sealed::Written;
  }
  if (verdict.outcome != Outcome::Done) throw Error(verdict.outcome, verdict.problems.front());
  const ManifestSummary& summary = *verdict.summary;
  const std::optional<Digest> root =
      summary.root ? summary.root : root_from_manifests(chain, index, summary.header);
  const bool signs = options.key != nullptr && !summary.signature;
  if (root == summary.root && !signs) return Sealed::Already;
  if (summary.signature && options.key == nullptr) {
    throw Error(Outcome::Incomplete,
                fmt::format("{}: is signed, and does not know its root; sign it again with --sign-key",
                            manifest_path(chain.layers()[index].path())));
  }
  complete(chain, index, summary, root, options);
  return Sealed::Completed;
}

}  // namespace qchain
