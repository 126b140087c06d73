#include "verify/root_fold.h"

#include <algorithm>

#include "extent/cancellation.h"

namespace qchain {

namespace {

// Blocks that are looked at together: 256 MiB of the disk.
constexpr std::uint64_t kWindow = 4096;
// Zeros that are added between two looks for a cancellation: 64 GiB.
constexpr std::uint64_t kMostZeros = std::uint64_t{1} << 20;

// The digests of a window of blocks as a layer describes them; an empty one: zeros.
using Window = std::vector<Digest>;

// One layer's manifest on the way through the disk.
class LayerCursor {
 public:
  LayerCursor(const Manifest& manifest, bool is_wanted)
      : header_(manifest.header()), reader_(manifest.records()) {
    if (is_wanted) disk_.emplace(header_.algorithm);
    advance();
  }

  // The first block from `at` on where this layer may hold anything but zeros; as far as that is known
  // without reading on.
  std::uint64_t next_data(std::uint64_t at) {
    while (!ended_ && record_.end() <= at) advance();
    if (ended_) return ~std::uint64_t{0};
    return record_.held == Held::Zeros ? record_.end() : std::max(at, record_.first);
  }

  // All layers have zeros in [at, end).
  void add_zeros(std::uint64_t at, std::uint64_t end) {
    if (disk_ && at < header_.blocks()) disk_->add_zeros(length_of(at, std::min(end, header_.blocks())));
  }

  // Turns the window, which begins at block `at` and is what the layers below describe, into what this layer
  // describes.
  void apply(std::uint64_t at, Window& window) {
    const std::uint64_t end = at + window.size();
    while (!ended_ && record_.first < end) {
      put(at, window);
      if (record_.end() > end) break;
      advance();
    }
    // Whatever the layers below have past the end of this one, those above see zeros there.
    for (std::uint64_t i = end > header_.blocks() ? header_.blocks() - std::min(at, header_.blocks()) : window.size();
         i < window.size(); ++i) {
      window[i] = {};
    }
    if (disk_) add(at, window);
  }

  Digest finish() {
    while (!ended_) advance();
    return disk_ ? disk_->finish() : Digest();
  }

 private:
  void advance() { ended_ = !reader_.next(record_); }

  std::uint64_t length_of(std::uint64_t first, std::uint64_t end) const {
    return std::min(header_.length, end * kDigestBlock) - first * kDigestBlock;
  }

  // What the current record says of the window.
  void put(std::uint64_t at, Window& window) const {
    const std::uint64_t end = std::min(record_.end(), at + window.size());
    for (std::uint64_t block = std::max(record_.first, at); block < end; ++block) {
      window[block - at] = record_.held == Held::Zeros ? Digest() : record_.whole[block - record_.first];
    }
  }

  void add(std::uint64_t at, const Window& window) {
    const std::uint64_t end = std::min(at + window.size(), header_.blocks());
    for (std::uint64_t block = at; block < end;) {
      std::uint64_t next = block + 1;
      if (!window[block - at].bytes().empty()) {
        disk_->add_block(window[block - at], length_of(block, next));
      } else {
        while (next < end && window[next - at].bytes().empty()) ++next;
        disk_->add_zeros(length_of(block, next));
      }
      block = next;
    }
  }

  const ManifestHeader& header_;
  ManifestReader reader_;
  std::optional<DiskDigest> disk_;
  ManifestRecord record_;
  bool ended_ = false;
};

}  // namespace

std::vector<Digest> fold_roots(std::span<const std::shared_ptr<const Manifest>> manifests,
                               std::size_t wanted) {
  std::vector<LayerCursor> layers;
  layers.reserve(manifests.size());
  std::uint64_t blocks = 0;
  for (const auto& manifest : manifests) {
    layers.emplace_back(*manifest, layers.size() < wanted);
    blocks = std::max(blocks, manifest->header().blocks());
  }
  Window window;
  for (std::uint64_t at = 0; at < blocks;) {
    throw_if_cancelled();
    std::uint64_t next = std::min(blocks, at + kMostZeros);
    for (LayerCursor& layer : layers) next = std::min(next, std::max(layer.next_data(at), at));
    if (next - at >= kWindow) {
      for (LayerCursor& layer : layers) layer.add_zeros(at, next);
      at = next;
      continue;
    }
    window.assign(std::min(kWindow, blocks - at), {});
    for (std::size_t i = layers.size(); i-- > 0;) layers[i].apply(at, window);
    at += window.size();
  }
  std::vector<Digest> roots;
  for (LayerCursor& layer : layers) {
    const Digest root = layer.finish();
    if (roots.size() < wanted) roots.push_back(root);
  }
  return roots;
}

}  // namespace qchain
