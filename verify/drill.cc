#include "verify/drill.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "extent/engine.h"
#include "extent/piece.h"
#include "extent/zero.h"
#include "verify/chain_digests.h"

namespace qchain {

namespace {

constexpr std::size_t kMaxDamages = 1000;

GuestRange block_range(std::uint64_t index, const ManifestHeader& header) {
  return guest_range(index * kDigestBlock, header.block_length(index));
}

// What a manifest says of neighbouring blocks, as extents: Data where it names them. Its records are kept in
// a second reader, which the drill follows in step.
ExtentSource named_blocks(const std::string& path) {
  struct State {
    ManifestReader reader;
    std::uint64_t at = 0;  // bytes
    std::optional<Extent> pending;
    bool ended = false;

    std::optional<Extent> next() {
      if (pending) return std::exchange(pending, std::nullopt);
      if (ended) return std::nullopt;
      const std::uint64_t length = reader.header().length;
      ManifestRecord record;
      ended = !reader.next(record);
      const std::uint64_t begin = ended ? length : record.first * kDigestBlock;
      const std::uint64_t end = ended ? length : std::min(length, record.end() * kDigestBlock);
      pending = Extent{guest_range(begin, end - begin), Kind::Data};
      const Extent gap{{GuestOffset(at), GuestOffset(begin)}, Kind::Inherit};
      at = end;
      return gap;
    }
  };
  return [state = std::make_shared<State>(State{ManifestReader(path), 0, {}, false})] {
    return state->next();
  };
}

// What one layer's own tables say: Data where it holds anything.
ExtentSource held_ranges(const Chain& chain, std::size_t layer, std::uint64_t length) {
  return [&chain, layer, rest = guest_range(0, length), window = std::vector<Mapping>{},
          next = std::size_t{0}]() mutable -> std::optional<Extent> {
    if (next == window.size()) {
      if (rest.empty()) return std::nullopt;
      window = chain.map_layer_alone(layer, rest);
      next = 0;
      rest.begin = window.back().range.end;
    }
    const Mapping& mapping = window[next++];
    return Extent{mapping.range, mapping.kind == Kind::Inherit ? Kind::Inherit : Kind::Data};
  };
}

struct Job {
  Chain& chain;
  const std::size_t layer;
  const DrillOptions& options;
  ManifestReader records;
  ManifestRecord record;  // the current one of `records`
  bool records_ended = false;
  PiecePlanner planner;
  LayerProof proof;

  const ManifestHeader& header() const { return records.header(); }

  void add(const Damage& damage) {
    proof.damaged_bytes += damage.range.length();
    std::vector<Damage>& all = proof.damages;
    if (!all.empty() && all.back().range.end == damage.range.begin &&
        all.back().own_bytes_intact == damage.own_bytes_intact &&
        all.back().source.layer == damage.source.layer) {
      all.back().range.end = damage.range.end;
    } else if (all.size() < kMaxDamages) {
      all.push_back(damage);
    }
  }
};

class DrillWorker : public Worker {
 public:
  explicit DrillWorker(Job& job)
      : job_(job),
        reader_(job.chain.open_reader_at(job.layer)),
        hasher_(job.header().algorithm),
        buffer_(PieceLimits{}.data) {}

  bool take() override {
    if (!job_.planner.next(piece_)) return false;
    expected_.clear();
    for (const Extent& run : piece_.runs) {
      if (run.kind != Kind::Data) continue;
      for (std::uint64_t block = run.range.begin.bytes() / kDigestBlock;
           block * kDigestBlock < run.range.end.bytes(); ++block) {
        expected_.push_back(expectation(block));
      }
    }
    return true;
  }

  void fetch() override {
    std::vector<ReadRequest> batch;
    std::span<std::byte> free(buffer_);
    for (const Extent& run : piece_.runs) {
      if (run.kind != Kind::Data) continue;
      batch.push_back({run.range.begin, free.first(run.range.length())});
      free = free.subspan(run.range.length());
    }
    reader_->read(batch);
    damages_.clear();
    std::size_t at = 0;
    for (const Expected& expected : expected_) {
      const std::uint64_t length = job_.header().block_length(expected.block);
      check(expected, std::span(buffer_).subspan(at, length));
      at += length;
    }
  }

  void settle() override {
    job_.proof.read_bytes += piece_.data_bytes;
    for (const Expected& expected : expected_) {
      if (!expected.named) continue;
      ++job_.proof.blocks;
      if (expected.held == Held::Zeros) ++job_.proof.zero_blocks;
      if (expected.held == Held::Part) ++job_.proof.partial_blocks;
    }
    for (const Damage& damage : damages_) job_.add(damage);
    job_.options.progress(piece_.runs.back().range.end.bytes());
  }

 private:
  // What the manifest says of a block that has to be looked at.
  struct Expected {
    std::uint64_t block = 0;
    bool named = false;
    Held held = Held::Data;
    Digest whole;
    Digest part;
  };

  // Under the engine's lock, in the order of the disk.
  Expected expectation(std::uint64_t block) {
    while (!job_.records_ended && job_.record.end() <= block) {
      job_.records_ended = !job_.records.next(job_.record);
    }
    const ManifestRecord& record = job_.record;
    Expected expected{block, !job_.records_ended && record.first <= block, record.held, {}, {}};
    if (expected.named && record.held != Held::Zeros) expected.whole = record.whole[block - record.first];
    if (expected.named && record.held == Held::Part) expected.part = record.part[block - record.first];
    return expected;
  }

  void check(const Expected& expected, std::span<const std::byte> bytes) {
    const bool zeros_expected = expected.named ? expected.held == Held::Zeros : !job_.header().overlay;
    if (zeros_expected) {
      if (!is_zero(bytes)) note(expected, expected.named ? "zeros" : "not held", bytes, false);
      return;
    }
    if (!expected.named) {
      note(expected, "not held", bytes, false);
      return;
    }
    if (hasher_.of(bytes) == expected.whole && part_fits(expected)) return;
    note(expected, named(job_.header().algorithm, expected.whole), bytes,
         expected.held == Held::Part && part_fits(expected));
  }

  // Whether the bytes of the block that the layer holds itself are what they were.
  bool part_fits(const Expected& expected) {
    if (expected.held != Held::Part) return true;
    for (GuestRange rest = block_range(expected.block, job_.header()); !rest.empty();) {
      for (const Mapping& mapping : job_.chain.map_layer_alone(job_.layer, rest)) {
        rest.begin = mapping.range.end;
        if (mapping.kind == Kind::Inherit) continue;
        std::vector<std::byte> bytes(mapping.range.length());
        const ReadRequest request{mapping.range.begin, bytes};
        reader_->read(std::span(&request, 1));
        hasher_.add(bytes);
      }
    }
    return hasher_.finish() == expected.part;
  }

  void note(const Expected& expected, const std::string& stored, std::span<const std::byte> bytes,
            bool own_bytes_intact) {
    Damage damage;
    damage.range = block_range(expected.block, job_.header());
    damage.layer = job_.layer;
    damage.source = job_.chain.map(damage.range, job_.layer).front();
    damage.own_bytes_intact = own_bytes_intact;
    damage.stored = stored;
    damage.found = named(job_.header().algorithm, hasher_.of(bytes));
    damages_.push_back(damage);
  }

  Job& job_;
  std::unique_ptr<Reader> reader_;
  Hasher hasher_;
  std::vector<std::byte> buffer_;
  Piece piece_;
  std::vector<Expected> expected_;  // of the blocks that are read
  std::vector<Damage> damages_;
};

std::string manifest_of(const Chain& chain, std::size_t index) {
  return manifest_path(chain.layers()[index].path());
}

[[noreturn]] void bad(const std::string& path, const std::string& what) {
  throw Error(Outcome::BadManifest, fmt::format("{}: {}", path, what));
}

void judge_identity(const Chain& chain, std::size_t index, const ManifestHeader& header) {
  const Layer& layer = chain.layers()[index];
  const std::string path = manifest_of(chain, index);
  const std::optional<Identity> identity = layer.identity();
  if (!identity) bad(path, fmt::format("{} has no identity that it could be the manifest of", layer.path()));
  if (header.layer_id != identity->id) {
    bad(path, fmt::format("is the manifest of layer {}, and {} is layer {}", header.layer_id, layer.path(),
                          identity->id));
  }
  if (header.parent_id != identity->parent_id || header.overlay != identity->overlay) {
    bad(path, fmt::format("names another parent than {} does", layer.path()));
  }
  if (header.length != layer.true_length()) {
    throw Error(Outcome::Mismatch, fmt::format("{}: a disk of {} bytes, and {} has {}", path, header.length,
                                               layer.path(), layer.true_length()));
  }
}

}  // namespace

std::vector<bool> manifests_of(const Chain& chain) {
  std::vector<bool> there;
  for (std::size_t i = 0; i < chain.layers().size(); ++i) {
    there.push_back(chain.layers()[i].image() != nullptr &&
                    access(manifest_of(chain, i).c_str(), F_OK) == 0);
  }
  return there;
}

std::optional<Digest> judge_manifest(const Chain& chain, std::size_t index) {
  const std::string path = manifest_of(chain, index);
  const std::optional<Digest> root = check_manifest(path);
  const ManifestHeader header = ManifestReader(path).header();
  judge_identity(chain, index, header);
  const Identity identity = *chain.layers()[index].identity();
  const std::string recorded = root ? named(header.algorithm, *root) : std::string();
  if (identity.digest != recorded) {
    bad(path, fmt::format("its root is {}, and the layer records {}", recorded.empty() ? "unknown" : recorded,
                          identity.digest.empty() ? "none" : identity.digest));
  }
  if (identity.parent_digest != header.parent_root) bad(path, "names another root of the parent than the layer");
  if (!root) return root;

  const std::vector<bool> there = manifests_of(chain);
  std::vector<std::string> manifests;
  for (std::size_t i = index; i < there.size(); ++i) {
    if (!there[i]) {
      throw Error(Outcome::Incomplete,
                  fmt::format("{}: has no manifest, so the root of {} cannot be followed to it",
                              chain.layers()[i].path(), path));
    }
    manifests.push_back(manifest_of(chain, i));
  }
  if (manifests.size() > 1) {
    const std::optional<Digest> below = check_manifest(manifests[1]);
    const ManifestHeader below_header = ManifestReader(manifests[1]).header();
    const std::string found = below ? named(below_header.algorithm, *below) : "unknown";
    if (found != header.parent_root) {
      throw Error(Outcome::Mismatch, fmt::format("{}: was written on a disk with root {}, and {} says {}", path,
                                                 header.parent_root, manifests[1], found));
    }
  }
  ChainDigests digests(manifests);
  DiskDigest disk(header.algorithm);
  digests.add_to(disk, 0, header.blocks(), header.length);
  digests.finish();
  const Digest folded = disk.finish();
  if (folded != *root) {
    throw Error(Outcome::Mismatch,
                fmt::format("{}: its root is {}, and the digests of the chain's manifests give {}", path,
                            recorded, named(header.algorithm, folded)));
  }
  return root;
}

LayerProof drill(Chain& chain, std::size_t index, const DrillOptions& options) {
  const std::string path = manifest_of(chain, index);
  const ManifestHeader header = ManifestReader(path).header();
  ExtentSource looked_at =
      normalise(zip(named_blocks(path), held_ranges(chain, index, header.length), either_data), kDigestBlock,
                Position::Bottom);
  Job job{chain, index, options, ManifestReader(path), {}, false, PiecePlanner(std::move(looked_at), {}), {}};
  job.proof.file = chain.layers()[index].path();
  job.proof.has_manifest = true;
  run_workers([&] { return std::make_unique<DrillWorker>(job); }, options.workers);
  return std::move(job.proof);
}

}  // namespace qchain
