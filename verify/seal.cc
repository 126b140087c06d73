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

ManifestHeader header_for(const Chain& chain, std::size_t index, const ParentDigests& parent) {
  const Layer& layer = chain.layers()[index];
  ManifestHeader header;
  header.algorithm = parent.algorithm.value_or(Algorithm::Sha256);
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

// The same records, with what was not known when they were written.
void complete(const Chain& chain, std::size_t index, const ManifestSummary& old, const SealOptions& options) {
  const std::string path = manifest_path(chain.layers()[index].path());
  ManifestHeader header = old.header;
  header.parent_root = beneath(chain, index).root;
  const std::unique_ptr<ChainDigests> digests = digests_from(chain, index);
  DiskDigest disk(header.algorithm);
  digests->add_to(disk, 0, header.blocks(), header.length);
  digests->finish();

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
  const Digest own = writer.finish(disk.finish());
  if (options.key != nullptr) writer.sign(options.key->sign(own));
  publication.publish();
}

void write(const Chain& chain, std::size_t index, const SealOptions& options) {
  ParentDigests parent = beneath(chain, index);
  const ManifestHeader header = header_for(chain, index, parent);
  const std::uint64_t parent_length = header.overlay ? chain.layers()[index + 1].true_length() : 0;
  LayerManifest manifest(chain.layers()[index].path(), header, parent_length, std::move(parent.digests));
  const LayerObserver observer = manifest.observer();
  LayerPieces pieces(chain.extents_of_layer(index, header.length), observer.block_size,
                     header.overlay ? Position::Overlay : Position::Bottom, observer.also_read, {});
  scan([&] { return chain.open_reader_at(index); },
       [&](Piece& piece, Extents& stored) { return pieces.next(piece, stored); }, observer.make_watcher,
       {options.workers, PieceLimits{}.data, options.progress});
  manifest.finish(options.key);
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
  if (summary.root && (options.key == nullptr || summary.signature)) return Sealed::Already;
  complete(chain, index, summary, options);
  return Sealed::Completed;
}

}  // namespace qchain
