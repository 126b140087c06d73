#include "verify/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "extent/page_buffer.h"
#include "extent/pass.h"
#include "extent/piece_reader.h"
#include "extent/zero.h"
#include "verify/block_checker.h"
#include "verify/chain_proof.h"

namespace qchain {

namespace {

constexpr std::size_t kMaxDifferences = 1000;

struct Job {
  Chain& chain;
  const std::uint64_t chain_length;
  BlockDevice& live;
  const CompareOptions& options;
  const std::uint64_t piece_bytes;
  DiskDigest live_digest;
  DiskDigest chain_digest;
  Comparison result;

  // Where the shorter side ends; what a last sector is filled up with belongs to both.
  GuestOffset common_end() const {
    const std::uint64_t a = align_up(chain_length, kSectorSize);
    const std::uint64_t b = align_up(live.size(), kSectorSize);
    return GuestOffset(std::min(a, b));
  }

  // The length that the live side's digest is of. A server may round the size of a disk to sectors: the same
  // disk then has the same digest.
  std::uint64_t live_length() const {
    const bool is_same = align_up(chain_length, kSectorSize) == align_up(live.size(), kSectorSize);
    return is_same ? chain_length : live.size();
  }

  void add_unread(const UnreadRange& unread) {
    result.add_unread(unread, kMaxDifferences);
    result.compared_bytes -= unread.range.length();
  }

  // What only one side has. If only a part is compared, the first part reports it.
  void add_rest() {
    const GuestRange range{common_end(),
                           GuestOffset(align_up(std::max(chain_length, live.size()), kSectorSize))};
    const Selection& selection = options.selection;
    const auto wanted = [&](const GuestRange& only) { return !intersect(only, range).empty(); };
    if (range.empty() || selection.part != 1) return;
    if (!selection.only.empty() && std::ranges::none_of(selection.only, wanted)) return;
    Discrepancy rest;
    rest.range = range;
    rest.live = rest.found = "only one side has this";
    if (chain_length > live.size()) rest.source = source_of(chain.map(rest.range).front());
    add_difference(rest);
  }

  // A block that differs, sector by sector, so that the range is named as narrowly as it can be.
  void add_difference(const Discrepancy& difference) {
    result.different_bytes += difference.range.length();
    result.bytes_of[static_cast<std::size_t>(difference.cause)] += difference.range.length();
    std::vector<Discrepancy>& all = result.different;
    if (!all.empty()) {
      Discrepancy& last = all.back();
      // The cause of a missed change is determined block by block.
      const bool same_block =
          last.range.begin.bytes() / kDigestBlock == difference.range.begin.bytes() / kDigestBlock;
      const bool same_source =
          last.source.layer == difference.source.layer && last.source.kind == difference.source.kind &&
          last.source.host_offset.has_value() == difference.source.host_offset.has_value() &&
          last.source.is_compressed == difference.source.is_compressed &&
          (difference.cause != Cause::Below || same_block);
      if (last.range.end == difference.range.begin && same_source && last.cause == difference.cause &&
          last.layer == difference.layer) {
        last.range.end = difference.range.end;
        return;
      }
    }
    if (all.size() < kMaxDifferences) all.push_back(difference);
  }
};

// Compares the blocks of one worker's pieces; the pass reads the live side.
class CompareStage : public Stage {
 public:
  explicit CompareStage(Job& job)
      : job_(job),
        chain_reader_(job.chain.open_reader(), job.chain.size()),  // with the fill of its last sector
        hasher_(job.options.algorithm),
        checker_(job.options.algorithm),
        chain_(job.piece_bytes) {}

  void plan(const Piece& piece) override {
    unread_.clear();
    stored_ = {};
    if (job_.options.stored != nullptr) stored_ = stored_piece(*job_.options.stored, piece);
  }

  bool accept_unread(const GuestRange& block, const Error& error) override {
    unread_.push_back({block, error.outcome(), error.what()});
    return true;
  }

  void fetched(Batch& batch) override {
    chain_reader_.read(batch.piece, chain_.span(), chain_data_,
                       [this](const GuestRange& block, const Error& error) { accept_unread(block, error); });
    live_reader_ = batch.reader;
    blocks_.clear();
    for (std::size_t run = 0; run < batch.data.size(); ++run) {
      const ReadRequest& live = batch.data[run];
      for (std::size_t at = 0; at < live.into.size(); at += kDigestBlock) {
        const std::size_t length = std::min<std::uint64_t>(kDigestBlock, live.into.size() - at);
        compare_block(live.begin + at, live.into.subspan(at, length),
                      chain_data_[run].into.subspan(at, length));
      }
    }
    look_for_lost_data();
  }

  void commit(const Batch& batch) override {
    Comparison& result = job_.result;
    auto block = blocks_.begin();
    for (const Extent& run : batch.piece.runs) {
      if (run.kind == Kind::Inherit) continue;  // not selected
      result.compared_bytes += run.range.length();
      if (run.kind == Kind::Zero) {
        add_zeros(job_.live_digest, job_.live_length(), run.range);
        add_zeros(job_.chain_digest, job_.chain_length, run.range);
        continue;
      }
      result.read_bytes += run.range.length();
      for (std::uint64_t left = run.range.length(); left > 0; ++block) {
        if (block->live_length > 0) job_.live_digest.add_block(block->live, block->live_length);
        if (block->chain_length > 0) job_.chain_digest.add_block(block->chain, block->chain_length);
        for (const Discrepancy& difference : block->differences) job_.add_difference(difference);
        left -= std::min(left, kDigestBlock);
      }
    }
    for (const Discrepancy& difference : not_zero_) job_.add_difference(difference);
    result.unknown_bytes += stored_.unknown_bytes;
    for (const UnreadRange& unread : unread_) job_.add_unread(unread);
  }

 private:
  // What a block's two sides are.
  struct Block {
    Digest live;
    Digest chain;
    std::uint64_t live_length = 0;  // that its digest is of
    std::uint64_t chain_length = 0;
    std::vector<Discrepancy> differences;
  };

  static std::uint64_t reach(const GuestRange& range, std::uint64_t size) {
    return intersect(range, guest_range(0, size)).length();
  }

  static void add_zeros(DiskDigest& digest, std::uint64_t size, const GuestRange& range) {
    const std::uint64_t length = reach(range, size);
    if (length > 0) digest.add_zeros(length);
  }

  std::string text_of(const Digest& digest) const {
    return ContentDigest{job_.options.algorithm, digest}.text();
  }

  bool is_unread(const GuestRange& range) const {
    return std::ranges::any_of(
        unread_, [&](const UnreadRange& unread) { return !intersect(unread.range, range).empty(); });
  }

  void compare_block(GuestOffset begin, std::span<const std::byte> live, std::span<const std::byte> chain) {
    const GuestRange range{begin, begin + live.size()};
    const StoredBlock* const stored =
        job_.options.stored != nullptr ? &stored_.data[blocks_.size()] : nullptr;
    Block& block = blocks_.emplace_back();
    block.live_length = reach(range, job_.live_length());
    block.chain_length = reach(range, job_.chain_length);
    if (block.live_length > 0) block.live = hasher_.of(live.first(block.live_length));
    // Equal bytes have equal digests: the second one is not computed where the bytes were compared.
    const bool equal = std::memcmp(live.data(), chain.data(), live.size()) == 0;
    if (equal && block.live_length == block.chain_length) {
      block.chain = block.live;
    } else if (block.chain_length > 0) {
      block.chain = hasher_.of(chain.first(block.chain_length));
    }
    if (is_unread(range)) return;
    if (!equal) return note_differences(range, live, chain, stored, block);
    if (stored != nullptr && !fits(*stored, chain.first(block.chain_length), block)) {
      block.differences.push_back(difference_from_stored(range, *stored, block));
    }
  }

  // Whether the chain's bytes are what its manifests say; where nothing is known, they are.
  bool fits(const StoredBlock& stored, std::span<const std::byte> chain, const Block& block) {
    if (!stored.known || chain.empty()) return true;
    return stored.whole.bytes().empty() ? is_zero(chain) : block.chain == stored.whole;
  }

  // Both sides agree, and the manifest says something else.
  Discrepancy difference_from_stored(const GuestRange& range, const StoredBlock& stored, const Block& block) {
    Discrepancy difference;
    difference.range = range;
    difference.source = source_at(range);
    difference.cause = Cause::Rotted;
    difference.layer = stored.layer;
    difference.live = text_of(block.live);
    difference.found = text_of(block.chain);
    difference.expected = checker_.name_of(stored);
    return difference;
  }

  // Why the two sides differ. Cause::Below is preliminary; look_below() checks it.
  Cause cause_of(const StoredBlock* stored, std::span<const std::byte> filled, const Block& block) {
    const std::span<const std::byte> chain = filled.first(block.chain_length);
    if (stored == nullptr || !stored->known || chain.empty()) return Cause::Unknown;
    if (!fits(*stored, chain, block)) {
      // The block was whole when the live side was pulled. If the layer's own bytes of it are as they were,
      // it is the rest, which was said to be clean, that is not.
      return checker_.own_bytes_match(*stored, chain, job_.chain) ? Cause::Below : Cause::Rotted;
    }
    if (!is_zero(filled.subspan(chain.size()))) return Cause::Rotted;
    const bool top_holds_it = stored->layer == 0 && stored->held != Held::None;
    return top_holds_it || job_.chain.layers().size() == 1 ? Cause::Changed : Cause::Missed;
  }

  void note_differences(const GuestRange& range, std::span<const std::byte> live,
                        std::span<const std::byte> chain, const StoredBlock* stored, Block& block) {
    std::vector<std::byte> again(live.size());
    const ReadRequest request{range.begin, std::span(again).first(reach(range, job_.live.size()))};
    if (!request.into.empty()) live_reader_->read(std::span(&request, 1));
    Discrepancy difference;
    difference.cause = std::ranges::equal(live, again) ? cause_of(stored, chain, block) : Cause::Moving;
    difference.live = text_of(block.live);
    difference.found = text_of(block.chain);
    if (stored != nullptr && stored->known) {
      difference.layer = stored->layer;
      difference.expected = checker_.name_of(*stored);
    }
    for (std::size_t at = 0; at < live.size() && range.begin + at < job_.common_end(); at += kSectorSize) {
      const std::size_t length = std::min<std::uint64_t>(kSectorSize, live.size() - at);
      if (std::memcmp(live.data() + at, chain.data() + at, length) == 0) continue;
      difference.range = {range.begin + at, range.begin + at + length};
      difference.source = source_at(difference.range);
      block.differences.push_back(difference);
    }
  }

  // Neither side has data there, and a manifest says that there was some.
  void look_for_lost_data() {
    not_zero_.clear();
    for (const StoredBlock& stored : stored_.not_zero) {
      const std::vector<std::byte> zeros(stored.range.length());
      if (checker_.matches(stored, zeros)) continue;
      Discrepancy& lost = not_zero_.emplace_back();
      lost.range = stored.range;
      lost.source = source_at(stored.range);
      lost.cause = Cause::Rotted;
      lost.layer = stored.layer;
      lost.live = lost.found = checker_.name_of(zeros);
      lost.expected = checker_.name_of(stored);
    }
  }

  BlockSource source_at(const GuestRange& range) const {
    const GuestRange inside = intersect(range, guest_range(0, job_.chain.size()));
    return inside.empty() ? BlockSource() : source_of(job_.chain.map(inside).front());
  }

  Job& job_;
  Reader* live_reader_ = nullptr;
  PieceReader chain_reader_;
  Hasher hasher_;
  BlockChecker checker_;
  ReadBuffer chain_;
  std::vector<ReadRequest> chain_data_;
  std::vector<Block> blocks_;        // of the piece's data
  std::vector<UnreadRange> unread_;  // of the same
  StoredPiece stored_;
  std::vector<Discrepancy> not_zero_;  // lost altogether
};

// Of a disk with a part that only one side has: that part has to be looked at.
ExtentSource both_sides(Chain& chain, BlockDevice& live, const Selection& selection) {
  ExtentSource kinds =
      normalise(zip(extents_of(chain), extents_of(live), either_data), kDigestBlock, Position::Bottom);
  return selected(as_zeros(std::move(kinds)), selection, std::max(chain.size(), live.size()));
}

// Where a layer's own bytes are right and the block is not: a layer below is damaged there, or the bitmap
// missed a change.
void look_below(RestorePoints& points, const CompareOptions& compare_options, Comparison& result) {
  const Chain& chain = points.chain();
  ProofOptions options;
  options.workers = compare_options.workers;
  options.deadline = compare_options.deadline;
  for (const Discrepancy& difference : result.different) {
    if (difference.cause == Cause::Below) options.selection.only.push_back(difference.range);
  }
  if (options.selection.only.empty()) return;
  std::vector<std::optional<Proof>> proofs(chain.layers().size());
  for (std::size_t layer = 1, end = points.manifests_from(0); layer < end; ++layer) {
    proofs[layer] = prove_layer(points, layer, options);
  }
  for (Discrepancy& difference : result.different) {
    if (difference.cause != Cause::Below) continue;
    const GuestRange blocks{GuestOffset(align_down(difference.range.begin.bytes(), kDigestBlock)),
                            GuestOffset(align_up(difference.range.end.bytes(), kDigestBlock))};
    result.bytes_of[static_cast<std::size_t>(difference.cause)] -= difference.range.length();
    difference.cause = cause_from_lower_layers(chain, difference.layer, blocks, [&](std::size_t lower) {
      return proofs[lower] ? &*proofs[lower] : nullptr;
    });
    result.bytes_of[static_cast<std::size_t>(difference.cause)] += difference.range.length();
  }
}

}  // namespace

Comparison compare(Chain& chain, BlockDevice& live, const CompareOptions& options) {
  const PieceLimits limits = limits_for(options.workers, 2);  // both sides
  std::optional<std::uint64_t> stopped_at;
  Job job{chain,
          chain.top().true_length(),
          live,
          options,
          limits.data,
          DiskDigest(options.algorithm),
          DiskDigest(options.algorithm),
          {}};
  Pass pass;
  pass.open_reader = [&] { return live.open_reader(); };
  pass.size = live.size();
  pass.piece_bytes = limits.data;
  pass.pieces =
      until(pieces_of(both_sides(chain, live, options.selection), limits), options.deadline, stopped_at);
  pass.stages = {[&] { return std::make_unique<CompareStage>(job); }};
  pass.workers.workers = options.workers;
  pass.progress = options.progress;
  run(pass);
  job.add_rest();
  Comparison& result = job.result;
  result.stopped_at = stopped_at;
  if (options.selection.is_everything() && !stopped_at && result.unread_bytes == 0) {
    result.live = job.live_digest.finish();
    result.chain = job.chain_digest.finish();
  }
  if (options.stored != nullptr && options.points != nullptr) look_below(*options.points, options, result);
  return std::move(result);
}

}  // namespace qchain
