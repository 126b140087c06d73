#include "verify/root_fold.h"

#include <algorithm>

#include "extent/cancellation.h"

namespace qchain {

namespace {

// Blocks that are processed together: 256 MiB of the disk.
constexpr std::uint64_t kWindow = 4096;
// Zero blocks between two checks for cancellation: 64 GiB.
constexpr std::uint64_t kMostZeros = std::uint64_t{1} << 20;

// The digests of a window of blocks at some layer; an empty digest: zeros.
using Window = std::vector<Digest>;

// A position in one layer's manifest.
class LayerCursor {
 public:
  LayerCursor(const Manifest& manifest, bool is_wanted)
      : header_(manifest.header()), reader_(manifest.records()) {
    if (is_wanted) disk_.emplace(header_.algorithm);
    advance();
  }

  // The first block from `at` on where this layer may hold anything but zeros, as far as the current record
  // shows.
  std::uint64_t next_data(std::uint64_t at) {
    while (!ended_ && record_.end() <= at) advance();
    if (ended_) return ~std::uint64_t{0};
    return record_.held == Held::Zeros ? record_.end() : std::max(at, record_.first);
  }

  // Adds [at, end), where all layers have zeros.
  void add_zeros(std::uint64_t at, std::uint64_t end) {
    if (disk_ && at < header_.blocks()) disk_->add_zeros(length_of(at, std::min(end, header_.blocks())));
  }

  // Updates the window, which starts at block `at` and has the digests at the layer below, to this layer.
  void apply(std::uint64_t at, Window& window) {
    const std::uint64_t end = at + window.size();
    while (!ended_ && record_.first < end) {
      put(at, window);
      if (record_.end() > end) break;
      advance();
    }
    // Past the end of this layer there are zeros, whatever the layers below hold.
    for (std::uint64_t i = end > header_.blocks() ? header_.blocks() - std::min(at, header_.blocks())
                                                  : window.size();
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

  // Applies the current record to the window.
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
