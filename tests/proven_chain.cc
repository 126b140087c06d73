#include "tests/proven_chain.h"

#include <algorithm>
#include <sstream>
#include <utility>

#include "qcow2/compression.h"
#include "verify/layer_build.h"

namespace qchain::tests {

namespace {

bool all_zeros(std::span<const std::byte> bytes) {
  return std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{0}; });
}

std::span<const std::byte> block_of(const Bytes& bytes, std::uint64_t index) {
  const std::uint64_t begin = index * kDigestBlock;
  return std::span(bytes).subspan(begin, std::min<std::uint64_t>(kDigestBlock, bytes.size() - begin));
}

}  // namespace

Digest blkhash_of(Algorithm algorithm, std::span<const std::byte> bytes) {
  Hasher outer(algorithm);
  Hasher inner(algorithm);
  for (std::size_t at = 0; at < bytes.size(); at += kDigestBlock) {
    outer.add(inner.of(bytes.subspan(at, std::min<std::size_t>(kDigestBlock, bytes.size() - at))).bytes());
  }
  std::array<std::byte, 8> length{};
  for (std::size_t i = 0; i < length.size(); ++i) length[i] = static_cast<std::byte>(bytes.size() >> (8 * i));
  outer.add(length);
  return outer.finish();
}

LayerOptions any_layer_options(Random& random) {
  LayerOptions options;
  options.extended_l2 = random.chance(30);
  options.cluster_bits = options.extended_l2 ? random.one_of<unsigned>({14, 15, 16, 18, 21})
                                             : random.one_of<unsigned>({12, 12, 13, 15, 16, 16, 17, 21});
  if (random.chance(30)) {
    options.compression = parse_compression(random.one_of<std::string>({"zlib:1", "zstd:1"}));
  }
  options.workers = random.bits(1, 4);
  return options;
}

Disk ProvenChain::next_disk(std::uint64_t size, std::uint64_t grain) {
  const Position position = layers_.empty() ? Position::Bottom : Position::Overlay;
  Disk disk = random_disk(random_, size, grain, position);
  if (position == Position::Bottom) return disk;
  const Bytes& below = layers_.back().content();
  for (const Extent& extent : disk.extents) {
    const bool data_as_below = extent.kind == Kind::Data && random_.chance(10);
    if (extent.kind != Kind::Inherit && !data_as_below) continue;
    for (std::uint64_t at = extent.range.begin.bytes(); at < extent.range.end.bytes(); ++at) {
      disk.bytes[at] = at < below.size() ? below[at] : std::byte{0};
    }
  }
  return disk;
}

void ProvenChain::add(Disk disk, LayerOptions options, Algorithm algorithm, const SigningKey* key) {
  ProvenLayer layer;
  layer.name = "layer" + std::to_string(layers_.size()) + ".qcow2";
  layer.algorithm = algorithm;
  layer.position = options.position = layers_.empty() ? Position::Bottom : Position::Overlay;

  std::unique_ptr<Chain> parent;
  if (!layers_.empty()) {
    parent = open();
    layer.parent_length = parent->top().true_length();
  }
  LayerRecipe recipe;
  recipe.output = folder_ / layer.name;
  recipe.existing = Existing::Replace;
  std::optional<RestorePoints> points;
  if (parent) recipe.parent = &points.emplace(*parent);
  recipe.identity.id = random_uuid();
  recipe.identity.length = disk.bytes.size();
  recipe.identity.checkpoint = "check" + std::to_string(layers_.size());
  recipe.layer = layer.options = options;
  recipe.algorithm = algorithm;
  recipe.key = key;
  LayerBuild build(std::move(recipe));
  MemoryDevice device(disk.bytes, disk.extents, random_.one_of<std::uint64_t>({100000, 1 << 30}));
  build.write(device);
  if (const auto digest = build.finish()) layer.root = digest->bytes;
  build.commit();
  layer.disk = std::move(disk);
  layers_.push_back(std::move(layer));
}

void ProvenChain::add_any(Algorithm algorithm, std::uint64_t most) {
  const LayerOptions options = any_layer_options(random_);
  std::uint64_t size = random_.between(1, most);
  if (random_.chance(60)) size = align_up(size, random_.one_of<std::uint64_t>({512, 4096, 65536}));
  if (!layers_.empty() && random_.chance(50)) size = layers_.back().content().size();
  const std::uint64_t grain = random_.one_of<std::uint64_t>({512, 777, 4096, 4096, 20480, 65536, 200704});
  Disk disk = next_disk(size, std::max(grain, size / 100));
  if (options.compression) {
    // Half of it compresses; what is inherited stays what it is.
    for (const Extent& extent : disk.extents) {
      if (extent.kind != Kind::Data || random_.chance(50)) continue;
      for (std::uint64_t at = extent.range.begin.bytes(); at < extent.range.end.bytes(); ++at) {
        disk.bytes[at] &= std::byte{0x11};
      }
    }
  }
  add(std::move(disk), options, algorithm);
}

std::unique_ptr<Chain> ProvenChain::open(std::size_t from_top_index) const {
  return Chain::open(path(from_top_index), ImageFormat::Qcow2, {});
}

std::string ProvenChain::description() const {
  std::ostringstream words;
  for (const ProvenLayer& layer : layers_) {
    words << layer.name << ": " << layer.content().size() << " bytes, cluster bits "
          << layer.options.cluster_bits << (layer.options.extended_l2 ? ", extended" : "")
          << (layer.options.compression ? ", compressed" : "") << ", " << to_string(layer.algorithm) << "; ";
  }
  return words.str();
}

std::vector<BlockLaw> ProvenChain::law(std::size_t from_top_index) const {
  const ProvenLayer& layer = from_top(from_top_index);
  const Bytes& bytes = layer.content();
  const std::uint64_t unit = Geometry(layer.options.cluster_bits, layer.options.extended_l2, 0).unit();
  const Extents stored = stored_by_law(layer.disk, unit, layer.position);
  const bool overlay = layer.position == Position::Overlay;
  const std::uint64_t cut = std::min<std::uint64_t>(layer.parent_length, bytes.size());
  std::vector<BlockLaw> blocks(divide_up(bytes.size(), kDigestBlock));
  for (std::uint64_t i = 0; i < blocks.size(); ++i) {
    const std::span<const std::byte> block = block_of(bytes, i);
    const GuestRange range = guest_range(i * kDigestBlock, block.size());
    Bytes held;
    for (const Extent& extent : stored) {
      const GuestRange common = intersect(extent.range, range);
      if (extent.kind == Kind::Inherit || common.empty()) continue;
      const auto begin = block.begin() + static_cast<std::ptrdiff_t>(common.begin - range.begin);
      held.insert(held.end(), begin, begin + static_cast<std::ptrdiff_t>(common.length()));
    }
    // The block in which the disk was truncated has changed, whether the layer holds anything of it or not.
    const bool is_cut =
        overlay && layer.parent_length != bytes.size() && cut % kDigestBlock != 0 && cut / kDigestBlock == i;
    Hasher hasher(layer.algorithm);
    if (held.empty() && !is_cut) continue;
    if (held.size() == block.size() || !overlay) {
      // Zeros of a full layer are not recorded.
      blocks[i].held = !all_zeros(block) ? Held::Data : overlay ? Held::Zeros : Held::None;
      if (blocks[i].held == Held::Data) blocks[i].whole = hasher.of(block);
      continue;
    }
    blocks[i].held = Held::Part;
    blocks[i].whole = hasher.of(block);
    blocks[i].part = hasher.of(held);
  }
  return blocks;
}

}  // namespace qchain::tests
