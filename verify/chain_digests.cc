#include "verify/chain_digests.h"

#include <algorithm>
#include <utility>

#include "extent/error.h"
#include "extent/cancellation.h"

namespace qchain {

namespace {

// Blocks between two checks for cancellation: 64 GiB.
constexpr std::uint64_t kAtATime = std::uint64_t{1} << 20;

std::uint64_t first_block(const GuestRange& range) { return range.begin.bytes() / kDigestBlock; }
std::uint64_t end_block(const GuestRange& range) { return divide_up(range.end.bytes(), kDigestBlock); }

StoredBlock block_of(const ChainDigests::Run& run, std::uint64_t index, std::uint64_t offset,
                     const GuestRange& range) {
  StoredBlock block;
  block.range = intersect(range, guest_range(index * kDigestBlock, kDigestBlock));
  block.known = run.known;
  block.held = run.held;
  block.layer = run.layer;
  if (run.whole != nullptr) block.whole = run.whole[offset];
  if (run.part != nullptr) block.part = run.part[offset];
  return block;
}

}  // namespace

// One layer of the chain.
class ChainDigests::Source {
 public:
  /// `length`: size of the disk at this layer, in bytes.
  explicit Source(std::uint64_t length) : length_(length) {}
  virtual ~Source() = default;

  std::uint64_t blocks() const { return divide_up(length_, kDigestBlock); }
  /// Whether this layer holds block `first`. Fills in `run`, and reduces run.count to the number of blocks
  /// for which the answer is the same.
  virtual bool look_up(std::uint64_t first, Run& run) = 0;
  /// Reads the manifest to its end.
  virtual void finish() {}

 protected:
  const std::uint64_t length_;
};

// A layer with a manifest.
class ChainDigests::Recorded : public Source {
 public:
  explicit Recorded(const Manifest& manifest)
      : Source(manifest.header().length), reader_(manifest.records()) {}

  bool look_up(std::uint64_t first, Run& run) override {
    while (!ended_ && record_.end() <= first) ended_ = !reader_.next(record_);
    if (ended_) return false;
    if (record_.first > first) {
      run.count = std::min(run.count, record_.first - first);
      return false;
    }
    run.count = std::min(run.count, record_.end() - first);
    run.held = record_.held;
    if (record_.held != Held::Zeros) run.whole = &record_.whole[first - record_.first];
    if (record_.held == Held::Part) run.part = &record_.part[first - record_.first];
    return true;
  }

  void finish() override {
    while (!ended_) ended_ = !reader_.next(record_);
  }

 private:
  ManifestReader reader_;
  ManifestRecord record_;
  bool ended_ = false;
};

// A layer without a manifest: its mapping shows which blocks it holds; their digests are unknown.
class ChainDigests::Gap : public Source {
 public:
  Gap(const Chain& chain, std::size_t layer)
      : Source(chain.layers()[layer].true_length()), map_(chain.extents_of_layer(layer, length_)) {
    if (layer + 1 == chain.layers().size()) return;
    // If the two disks have different sizes, the block in which the shorter one ends has different lengths.
    const std::uint64_t length_below = chain.layers()[layer + 1].true_length();
    const std::uint64_t end = std::min(length_, length_below);
    if (length_below != length_ && end % kDigestBlock != 0) cut_ = end / kDigestBlock;
  }

  bool look_up(std::uint64_t first, Run& run) override {
    if (!begun_) advance();
    while (held_ && end_block(held_->range) <= first) advance();
    const std::uint64_t begin = held_ ? first_block(held_->range) : first + run.count;
    const bool is_cut = cut_ == first;
    if (begin <= first || is_cut) {
      run.known = false;
      run.count = is_cut ? 1 : std::min(run.count, end_block(held_->range) - first);
      return true;
    }
    run.count = std::min(run.count, begin - first);
    if (cut_ && *cut_ > first) run.count = std::min(run.count, *cut_ - first);
    return false;
  }

 private:
  // Advances to the next extent that the layer holds.
  void advance() {
    begun_ = true;
    do {
      held_ = map_();
    } while (held_ && held_->kind == Kind::Inherit);
  }

  ExtentSource map_;
  std::optional<Extent> held_;
  bool begun_ = false;
  std::optional<std::uint64_t> cut_;
};

ChainDigests::ChainDigests(const std::vector<std::shared_ptr<const Manifest>>& manifests,
                           std::size_t first_layer)
    : first_layer_(first_layer), complete_(true), top_(manifests.front()->header()) {
  for (const auto& manifest : manifests) sources_.push_back(std::make_unique<Recorded>(*manifest));
}

ChainDigests::ChainDigests(const Chain& chain, std::size_t first_layer,
                           const std::vector<std::shared_ptr<const Manifest>>& manifests)
    : first_layer_(first_layer), complete_(true) {
  std::optional<Algorithm> algorithm;
  for (std::size_t i = 0; i < manifests.size(); ++i) {
    if (manifests[i]) {
      const ManifestHeader& header = manifests[i]->header();
      if (!algorithm) algorithm = header.algorithm;
      if (*algorithm == header.algorithm) {
        if (i == 0) top_ = header;
        sources_.push_back(std::make_unique<Recorded>(*manifests[i]));
        continue;
      }
    }
    complete_ = false;
    sources_.push_back(std::make_unique<Gap>(chain, first_layer + i));
    if (i != 0) continue;
    top_.length = chain.layers()[first_layer].true_length();
    top_.overlay = first_layer + 1 < chain.layers().size();
  }
  if (algorithm) top_.algorithm = *algorithm;
}

ChainDigests::~ChainDigests() = default;

ChainDigests::Run ChainDigests::next(std::uint64_t first, std::uint64_t at_most) {
  Run run;
  run.count = at_most;
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    run.layer = first_layer_ + i;
    const std::uint64_t blocks = sources_[i]->blocks();
    if (first >= blocks) return run;  // past the end of this layer: zeros, whatever is below
    run.count = std::min(run.count, blocks - first);
    if (sources_[i]->look_up(first, run)) return run;
  }
  return run;
}

void ChainDigests::add_to(DiskDigest& disk, std::uint64_t first, std::uint64_t count, std::uint64_t end) {
  while (count > 0) {
    throw_if_cancelled();
    const Run run = next(first, std::min(count, kAtATime));
    const std::uint64_t length = std::min(end - first * kDigestBlock, run.count * kDigestBlock);
    if (run.whole == nullptr) {
      disk.add_zeros(length);
    } else {
      for (std::uint64_t i = 0; i < run.count; ++i) {
        disk.add_block(run.whole[i], std::min(kDigestBlock, length - i * kDigestBlock));
      }
    }
    first += run.count;
    count -= run.count;
  }
}

void ChainDigests::finish() {
  for (const auto& source : sources_) source->finish();
}

StoredPiece stored_piece(ChainDigests& digests, const Piece& piece) {
  StoredPiece stored;
  for (const Extent& extent : piece.runs) {
    if (extent.kind == Kind::Inherit) continue;
    const std::uint64_t end = end_block(extent.range);
    for (std::uint64_t at = first_block(extent.range); at < end;) {
      const ChainDigests::Run run = digests.next(at, end - at);
      const GuestRange blocks = guest_range(at * kDigestBlock, run.count * kDigestBlock);
      if (!run.known) stored.unknown_bytes += intersect(extent.range, blocks).length();
      if (extent.kind == Kind::Zero && run.held == Held::Zeros) stored.zero_blocks += run.count;
      const GuestRange disk = intersect(extent.range, guest_range(0, digests.top().length));
      const bool listed = extent.kind == Kind::Data || run.whole != nullptr;
      for (std::uint64_t i = 0; listed && i < run.count; ++i) {
        (extent.kind == Kind::Data ? stored.data : stored.not_zero).push_back(block_of(run, at + i, i, disk));
      }
      at += run.count;
    }
  }
  return stored;
}

}  // namespace qchain
