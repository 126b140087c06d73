#include "verify/manifest_builder.h"

#include <algorithm>
#include <utility>

#include "extent/zero.h"

namespace qchain {

// Hashes the blocks of one worker's pieces.
class BlockHasher : public PieceObserver {
 public:
  explicit BlockHasher(ManifestBuilder& builder)
      : builder_(builder), hasher_(builder.header_.algorithm) {}

  void fetched(std::span<const ObservedRun> runs, const Extents& stored) override {
    runs_.clear();
    blocks_.clear();
    auto unit = stored.begin();
    for (const ObservedRun& run : runs) {
      runs_.push_back({run.range, run.kind});
      for (std::size_t at = 0; at < run.bytes.size(); at += kDigestBlock) {
        const std::span<const std::byte> bytes =
            run.bytes.subspan(at, std::min<std::uint64_t>(kDigestBlock, run.bytes.size() - at));
        const GuestRange range{run.range.begin + at, run.range.begin + at + bytes.size()};
        while (unit->range.end <= range.begin) ++unit;
        blocks_.push_back(hash(range, bytes, std::span(unit, stored.end())));
      }
    }
  }

  void settle() override {
    auto block = blocks_.begin();
    for (const Extent& run : runs_) {
      const std::uint64_t first = run.range.begin.bytes() / kDigestBlock;
      const std::uint64_t count = divide_up(run.range.length(), kDigestBlock);
      if (run.kind == Kind::Inherit) {
        skip(run.range, first, count);
      } else if (run.kind == Kind::Zero) {
        builder_.writer_.add_zeros(first, count);
        builder_.disk_.add_zeros(run.range.length());
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
    std::optional<Digest> part;  // the layer holds only a part of it
    Digest whole;
  };

  Block hash(const GuestRange& range, std::span<const std::byte> bytes,
             std::span<const Extent> stored) {
    Block block;
    block.length = bytes.size();
    if (builder_.header_.overlay) block.part = hash_part(range, bytes, stored);
    block.zero = !block.part && is_zero(bytes);
    if (!block.zero) block.whole = hasher_.of(bytes);
    return block;
  }

  // The digest of what the layer holds of a block; nullopt where it holds all of it.
  std::optional<Digest> hash_part(const GuestRange& range, std::span<const std::byte> bytes,
                                  std::span<const Extent> stored) {
    std::uint64_t held = 0;
    for (const Extent& unit : stored) {
      const GuestRange common = intersect(unit.range, range);
      if (unit.range.begin >= range.end) break;
      if (unit.kind != Kind::Inherit) held += common.length();
    }
    if (held == bytes.size()) return std::nullopt;
    for (const Extent& unit : stored) {
      const GuestRange common = intersect(unit.range, range);
      if (unit.range.begin >= range.end) break;
      if (unit.kind != Kind::Inherit) hasher_.add(bytes.subspan(common.begin - range.begin, common.length()));
    }
    return hasher_.finish();
  }

  void skip(const GuestRange& range, std::uint64_t first, std::uint64_t count) {
    if (builder_.parent_) {
      builder_.parent_->add_to(builder_.disk_, first, count, range.end.bytes());
    } else if (!builder_.header_.overlay) {
      builder_.disk_.add_zeros(range.length());
    }
  }

  void add(std::uint64_t index, const Block& block) {
    if (block.zero) {
      if (builder_.header_.overlay) builder_.writer_.add_zeros(index, 1);
      builder_.disk_.add_zeros(block.length);
      return;
    }
    const Held held = block.part ? Held::Part : Held::Data;
    builder_.writer_.add(held, index, block.whole, block.part.value_or(Digest()));
    builder_.disk_.add_block(block.whole, block.length);
  }

  ManifestBuilder& builder_;
  Hasher hasher_;
  Extents runs_;
  std::vector<Block> blocks_;  // of the runs with data, in order
};

ManifestBuilder::ManifestBuilder(const File& file, const ManifestHeader& header,
                                 std::unique_ptr<ChainDigests> parent)
    : header_(header), parent_(std::move(parent)), writer_(file, header), disk_(header.algorithm) {}

std::unique_ptr<PieceObserver> ManifestBuilder::for_worker() {
  return std::make_unique<BlockHasher>(*this);
}

std::optional<Digest> ManifestBuilder::finish() {
  if (parent_) parent_->finish();
  std::optional<Digest> root;
  if (root_is_known()) root = disk_.finish();
  writer_.finish(root);
  return root;
}

}  // namespace qchain
