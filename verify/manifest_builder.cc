#include "verify/manifest_builder.h"

#include <algorithm>
#include <utility>

#include "extent/zero.h"

namespace qchain {

// Hashes the blocks of one worker's pieces.
class BlockHasher : public Stage {
 public:
  explicit BlockHasher(ManifestBuilder& builder) : builder_(builder), hasher_(builder.header_.algorithm) {}

  void fetched(Batch& batch) override {
    blocks_.clear();
    const Extents& stored = batch.piece.stored;
    auto unit = stored.begin();
    for (const ReadRequest& run : batch.data) {
      for (std::size_t at = 0; at < run.into.size(); at += kDigestBlock) {
        const auto bytes = run.into.subspan(at, std::min<std::uint64_t>(kDigestBlock, run.into.size() - at));
        const GuestRange range{run.begin + at, run.begin + at + bytes.size()};
        while (unit != stored.end() && unit->range.end <= range.begin) ++unit;
        blocks_.push_back(hash(range, bytes, std::span(unit, stored.end())));
      }
    }
  }

  void commit(const Batch& batch) override {
    auto block = blocks_.begin();
    for (const Extent& run : batch.piece.runs) {
      const std::uint64_t first = run.range.begin.bytes() / kDigestBlock;
      const std::uint64_t count = divide_up(run.range.length(), kDigestBlock);
      if (run.kind == Kind::Inherit) {
        if (builder_.parent_) builder_.parent_->add_to(builder_.disk_, first, count, run.range.end.bytes());
      } else if (run.kind == Kind::Zero) {
        add_zeros(first, count, run.range.length());
      } else {
        for (std::uint64_t i = 0; i < count; ++i) add(first + i, *block++);
      }
    }
  }

 private:
  // One block that was read. Without a digest it is all zeros, which are held, or, in a full layer, not.
  struct Block {
    std::uint64_t length = 0;
    bool zero = false;
    bool is_held = true;         // else it turned out to be the parent's
    std::optional<Digest> part;  // the layer holds only a part of it
    Digest whole;
  };

  Block hash(const GuestRange& range, std::span<const std::byte> bytes, std::span<const Extent> stored) {
    Block block;
    block.length = bytes.size();
    if (builder_.header_.overlay) block.part = hash_part(range, bytes, stored, block);
    block.zero = !block.part && is_zero(bytes);
    if (!block.zero) block.whole = hasher_.of(bytes);
    return block;
  }

  // The digest of what the layer holds of a block; nullopt where it holds all of it.
  std::optional<Digest> hash_part(const GuestRange& range, std::span<const std::byte> bytes,
                                  std::span<const Extent> stored, Block& block) {
    std::vector<std::span<const std::byte>> parts;
    std::uint64_t held = 0;
    for (const Extent& unit : stored) {
      if (unit.range.begin >= range.end) break;
      if (unit.kind == Kind::Inherit) continue;
      const GuestRange common = intersect(unit.range, range);
      parts.push_back(bytes.subspan(common.begin - range.begin, common.length()));
      held += common.length();
    }
    if (held == bytes.size()) return std::nullopt;
    block.is_held = held > 0 || !intersect(builder_.cut_block(), range).empty();
    for (const auto& part : parts) hasher_.add(part);
    return hasher_.finish();
  }

  // A full layer does not record its zeros.
  void add_zeros(std::uint64_t first, std::uint64_t count, std::uint64_t bytes) {
    if (builder_.header_.overlay) builder_.writer_.add_zeros(first, count);
    builder_.disk_.add_zeros(bytes);
  }

  void add(std::uint64_t index, const Block& block) {
    if (!block.is_held) return builder_.disk_.add_block(block.whole, block.length);
    if (block.zero) return add_zeros(index, 1, block.length);
    const Held held = block.part ? Held::Part : Held::Data;
    builder_.writer_.add(held, index, block.whole, block.part.value_or(Digest()));
    builder_.disk_.add_block(block.whole, block.length);
  }

  ManifestBuilder& builder_;
  Hasher hasher_;
  std::vector<Block> blocks_;  // of the runs with data, in order
};

ManifestBuilder::ManifestBuilder(const File& file, const ManifestHeader& header, std::uint64_t parent_length,
                                 std::unique_ptr<ChainDigests> parent)
    : header_(header),
      parent_length_(parent_length),
      parent_(std::move(parent)),
      writer_(file, header),
      disk_(header.algorithm) {}

LayerObserver ManifestBuilder::observer() {
  return {[this] { return std::make_unique<BlockHasher>(*this); }, kDigestBlock, cut_block()};
}

GuestRange ManifestBuilder::cut_block() const {
  if (!header_.overlay || parent_length_ == header_.length) return {};
  const std::uint64_t end = std::min(parent_length_, header_.length);
  if (end % kDigestBlock == 0) return {};
  const std::uint64_t block = end / kDigestBlock;
  return guest_range(block * kDigestBlock, header_.block_length(block));
}

ManifestBuilder::Finished ManifestBuilder::finish() {
  if (parent_) parent_->finish();
  Finished finished;
  if (root_is_known()) finished.root = disk_.finish();
  finished.own_digest = writer_.finish(finished.root);
  return finished;
}

}  // namespace qchain
