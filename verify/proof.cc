#include "verify/proof.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "extent/zero.h"
#include "verify/block_checker.h"

namespace qchain {

namespace {

using Clock = std::chrono::steady_clock;

// Whose bytes are read.
enum class Subject { Layer, Disk };

// What they are compared with, and the result.
struct Job {
  Subject subject;
  const Chain& chain;
  ChainDigests& digests;
  const std::size_t max_listed;
  Proof& proof;

  void add(const Discrepancy& found) const {
    proof.different_bytes += found.range.length();
    std::vector<Discrepancy>& all = proof.different;
    // The cause of a missed change is determined block by block.
    if (found.cause != Cause::Missed && !all.empty() && all.back().range.end == found.range.begin &&
        all.back().cause == found.cause && all.back().layer == found.layer &&
        all.back().source.layer == found.source.layer) {
      all.back().range.end = found.range.end;
    } else if (all.size() < max_listed) {
      all.push_back(found);
    }
  }

  void add(const UnreadRange& unread) const { proof.add_unread(unread, max_listed); }
};

// What was read of the zeros that fill the disk's last sector, behind its last block.
std::span<const std::byte> fill_behind(const StoredBlock& block, const ReadRequest& run) {
  const GuestOffset end(align_up(block.range.end.bytes(), kSectorSize));
  const GuestRange fill = intersect({block.range.end, end}, run.range());
  return fill.empty() ? std::span<const std::byte>()
                      : run.into.subspan(fill.begin - run.begin, fill.length());
}

// Compares the blocks of one worker's pieces with their digests.
class ProofStage : public Stage {
 public:
  explicit ProofStage(const Job& job) : job_(job), checker_(job.digests.top().algorithm) {}

  void plan(const Piece& piece) override {
    stored_ = stored_piece(job_.digests, piece);
    different_.clear();
    unread_.clear();
  }

  void fetched(Batch& batch) override {
    auto block = stored_.data.begin();
    for (const ReadRequest& run : batch.data) {
      for (; block != stored_.data.end() && block->range.begin < run.range().end; ++block) {
        if (!block->known || is_unread(block->range)) continue;
        const auto bytes = run.into.subspan(block->range.begin - run.begin, block->range.length());
        const auto fill = fill_behind(*block, run);
        if (!check(*block, bytes)) {
          different_.push_back(discrepancy(*block, bytes));
        } else if (!is_zero(fill)) {
          different_.push_back(discrepancy(*block, {bytes.data(), bytes.size() + fill.size()}));
          if (different_.back().cause == Cause::Missed) different_.back().cause = Cause::Rotted;
        }
      }
    }
    for (const StoredBlock& not_zero : stored_.not_zero) {
      const std::vector<std::byte> zeros(not_zero.range.length());
      if (!checker_.matches(not_zero, zeros)) different_.push_back(discrepancy(not_zero, zeros));
    }
  }

  bool accept_unread(const GuestRange& range, const Error& error) override {
    unread_.push_back({range, error.outcome(), error.what()});
    return true;
  }

  void commit(const Batch& batch) override {
    Proof& proof = job_.proof;
    proof.read_bytes += batch.piece.data_bytes;
    proof.unknown_bytes += stored_.unknown_bytes;
    proof.blocks += stored_.zero_blocks;
    proof.zero_blocks += stored_.zero_blocks;
    for (const auto* list : {&stored_.data, &stored_.not_zero}) {
      for (const StoredBlock& block : *list) {
        if (block.held == Held::None || is_unread(block.range)) continue;
        ++proof.blocks;
        if (block.held == Held::Zeros) ++proof.zero_blocks;
        if (block.held == Held::Part) ++proof.partial_blocks;
      }
    }
    std::ranges::sort(different_, {}, [](const Discrepancy& found) { return found.range.begin; });
    for (const Discrepancy& found : different_) job_.add(found);
    for (const UnreadRange& unread : unread_) job_.add(unread);
  }

 private:
  bool check(const StoredBlock& block, std::span<const std::byte> bytes) {
    if (job_.subject == Subject::Disk) return checker_.matches(block, bytes);
    // A full layer may hold zeros of which no record tells; an overlay that holds anything has a record of
    // it.
    if (block.held == Held::None && job_.digests.top().overlay) return false;
    if (!checker_.matches(block, bytes)) return false;
    return block.held != Held::Part || checker_.own_bytes_match(block, bytes, job_.chain);
  }

  Discrepancy discrepancy(const StoredBlock& block, std::span<const std::byte> bytes) {
    Discrepancy discrepancy;
    discrepancy.range = block.range;
    discrepancy.layer = block.layer;
    discrepancy.expected = checker_.name_of(block);
    discrepancy.found = checker_.name_of(bytes);
    if (job_.subject == Subject::Layer) {
      discrepancy.source = source_of(job_.chain.map(block.range, block.layer).front());
      discrepancy.cause = checker_.own_bytes_match(block, bytes, job_.chain) ? Cause::Missed : Cause::Rotted;
    } else {
      discrepancy.source = source_of(job_.chain.map(block.range).front());
      discrepancy.cause = Cause::Changed;
    }
    return discrepancy;
  }

  bool is_unread(const GuestRange& range) const {
    return std::ranges::any_of(
        unread_, [&](const UnreadRange& unread) { return !intersect(unread.range, range).empty(); });
  }

  Job job_;
  BlockChecker checker_;
  StoredPiece stored_;
  std::vector<Discrepancy> different_;
  std::vector<UnreadRange> unread_;
};

// Throws for the first block that does not match.
class Guard : public Stage {
 public:
  Guard(const Chain& chain, ChainDigests& digests, std::uint64_t& unknown_bytes)
      : chain_(chain), digests_(digests), unknown_bytes_(unknown_bytes), checker_(digests.top().algorithm) {}

  void plan(const Piece& piece) override {
    stored_ = stored_piece(digests_, piece);
    unknown_bytes_ += stored_.unknown_bytes;
  }

  void fetched(Batch& batch) override {
    for (const StoredBlock& block : stored_.not_zero) {
      const std::vector<std::byte> zeros(block.range.length());
      if (!checker_.matches(block, zeros)) refuse(block, zeros);
    }
    auto block = stored_.data.begin();
    for (const ReadRequest& run : batch.data) {
      for (; block != stored_.data.end() && block->range.begin < run.range().end; ++block) {
        if (!block->known) continue;
        const auto bytes = run.into.subspan(block->range.begin - run.begin, block->range.length());
        const auto fill = fill_behind(*block, run);
        if (!checker_.matches(*block, bytes)) refuse(*block, bytes);
        if (!is_zero(fill)) refuse(*block, {bytes.data(), bytes.size() + fill.size()});
      }
    }
  }

 private:
  [[noreturn]] void refuse(const StoredBlock& block, std::span<const std::byte> bytes) {
    const Mapping source = chain_.map(block.range).front();
    const std::string host = source.storage == Storage::None
                                 ? "stored as zeros"
                                 : fmt::format("host offset {:#x}", source.host.bytes());
    throw Error(
        Outcome::Mismatch,
        fmt::format("{}: guest {} does not match its manifest ({}): stored {}, found {}",
                    chain_.layers()[source.layer].path(), to_string(block.range), host,
                    block.held == Held::None ? "zeros" : checker_.name_of(block), checker_.name_of(bytes)));
  }

  const Chain& chain_;
  ChainDigests& digests_;
  std::uint64_t& unknown_bytes_;
  BlockChecker checker_;
  StoredPiece stored_;
};

// What a manifest names, as extents: Zero where zeros, Data where anything else.
ExtentSource named_blocks(const Manifest& manifest) {
  struct State {
    ManifestReader reader;
    std::uint64_t at = 0;  // bytes
    std::optional<Extent> pending;
    bool ended = false;

    std::optional<Extent> next() {
      if (pending) return std::exchange(pending, std::nullopt);
      if (ended) return std::nullopt;
      const std::uint64_t length = align_up(reader.header().length, kSectorSize);
      ManifestRecord record;
      ended = !reader.next(record);
      const std::uint64_t begin = ended ? length : record.first * kDigestBlock;
      const std::uint64_t end = ended ? length : std::min(length, record.end() * kDigestBlock);
      const Kind kind = record.held == Held::Zeros ? Kind::Zero : Kind::Data;
      pending = Extent{guest_range(begin, end - begin), kind};
      const Extent gap{{GuestOffset(at), GuestOffset(begin)}, Kind::Inherit};
      at = end;
      return gap;
    }
  };
  return [state = std::make_shared<State>(State{manifest.records(), 0, {}, false})] { return state->next(); };
}

void prove(const Job& job, const ReaderFactory& open_reader, ExtentSource looked_at,
           const ProofOptions& options) {
  std::optional<std::uint64_t> stopped_at;
  Pass pass;
  pass.open_reader = open_reader;
  pass.pieces = until(pieces_of(std::move(looked_at)), options.deadline, stopped_at);
  pass.stages = {[&] { return std::make_unique<ProofStage>(job); }};
  pass.workers.workers = options.workers;
  pass.progress = options.progress;
  run(pass);
  job.proof.stopped_at = stopped_at;
}

}  // namespace

BlockSource source_of(const Mapping& mapping) {
  BlockSource source;
  source.layer = mapping.layer;
  source.kind = mapping.kind;
  if (mapping.storage != Storage::None) source.host_offset = mapping.host.bytes();
  source.is_compressed = mapping.storage == Storage::Compressed;
  return source;
}

PieceSource until(PieceSource pieces, const std::optional<Clock::time_point>& deadline,
                  std::optional<std::uint64_t>& stopped_at) {
  if (!deadline) return pieces;
  return [pieces = std::move(pieces), end = *deadline, &stopped_at](Piece& piece) {
    if (!pieces(piece)) return false;
    if (Clock::now() < end) return true;
    stopped_at = piece.runs.front().range.begin.bytes();
    return false;
  };
}

ExtentSource selected(ExtentSource extents, const Selection& selection, std::uint64_t length) {
  const auto masked = [](ExtentSource source, ExtentSource mask) {
    return zip(std::move(source), std::move(mask),
               [](Kind kind, Kind in_mask) { return in_mask == Kind::Data ? kind : Kind::Inherit; });
  };
  if (!selection.only.empty()) {
    Extents wanted;
    GuestOffset at;
    for (const GuestRange& range : selection.only) {
      const GuestOffset begin(align_down(range.begin.bytes(), kDigestBlock));
      const GuestOffset end(std::min(length, align_up(range.end.bytes(), kDigestBlock)));
      if (begin > at) append(wanted, {{at, begin}, Kind::Inherit});
      if (end > at) append(wanted, {{std::max(at, begin), end}, Kind::Data});
      at = std::max(at, end);
    }
    extents = masked(std::move(extents), stream(std::move(wanted)));
  }
  if (selection.parts > 1) {
    extents = masked(
        std::move(extents), [selection, length, at = std::uint64_t{0}]() mutable -> std::optional<Extent> {
          if (at >= length) return std::nullopt;
          const std::uint64_t stripe = at / Selection::kStripe;
          const std::uint64_t begin = std::exchange(at, std::min(length, at + Selection::kStripe));
          return Extent{guest_range(begin, at - begin),
                        stripe % selection.parts == selection.part - 1 ? Kind::Data : Kind::Inherit};
        });
  }
  return extents;
}

Proof prove_layer(RestorePoints& points, std::size_t index, const ProofOptions& options) {
  const Chain& chain = points.chain();
  const std::shared_ptr<const Manifest> manifest = points.manifest(index);
  ChainDigests digests({manifest}, index);
  const std::uint64_t length = align_up(digests.top().length, kSectorSize);
  Proof proof;
  const Job job{Subject::Layer, chain, digests, options.max_listed, proof};
  // Where both say zeros, there is nothing to read.
  ExtentSource looked_at = normalise(zip(named_blocks(*manifest), chain.extents_of_layer(index, length),
                                         [](Kind a, Kind b) { return a == b ? a : Kind::Data; }),
                                     kDigestBlock, Position::Overlay);
  prove(
      job, [&] { return chain.open_reader_at(index); },
      selected(std::move(looked_at), options.selection, length), options);
  if (!proof.stopped_at) digests.finish();
  return proof;
}

Proof prove_disk(BlockDevice& disk, const Chain& chain, ChainDigests& digests, const ProofOptions& options) {
  Proof proof;
  const Job job{Subject::Disk, chain, digests, options.max_listed, proof};
  const std::uint64_t length = std::min(disk.size(), align_up(digests.top().length, kSectorSize));
  prove(
      job, [&] { return disk.open_reader(); },
      selected(as_zeros(normalise(extents_of(disk, guest_range(0, length)), kDigestBlock, Position::Bottom)),
               options.selection, length),
      options);
  return proof;
}

StageFactory proof_stage(const Chain& chain, ChainDigests& digests, Proof& proof, std::size_t max_listed) {
  const Job job{Subject::Disk, chain, digests, max_listed, proof};
  return [job] { return std::make_unique<ProofStage>(job); };
}

StageFactory guard(const Chain& chain, ChainDigests& digests, std::uint64_t& unknown_bytes) {
  return [&] { return std::make_unique<Guard>(chain, digests, unknown_bytes); };
}

}  // namespace qchain
