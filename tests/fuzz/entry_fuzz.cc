// Entries of tables and refcounts: decoding is total, loses no bit, and a valid entry is
// encoded as what it was.

#include <cstring>
#include <span>

#include "qcow2/bitmap.h"
#include "qcow2/entry.h"
#include "qcow2/refcount.h"
#include "tests/fuzz/require.h"

using namespace qchain;

namespace {

struct Input {
  std::uint64_t raw;
  std::uint64_t bitmap;
  std::uint8_t cluster_bits;
  std::uint8_t flags;

  bool extended() const { return (flags & 1) != 0; }
  bool data_file() const { return (flags & 2) != 0; }
  unsigned version() const { return (flags & 4) != 0 && !extended() ? 2 : 3; }
  Geometry geometry() const {
    const unsigned lowest = extended() ? kMinExtendedL2ClusterBits : kMinClusterBits;
    return {lowest + cluster_bits % (kMaxClusterBits - lowest + 1), extended(), std::uint64_t{1} << 40};
  }
};

void try_l2(const Input& input) {
  const Geometry geometry = input.geometry();
  const std::uint64_t bitmap = input.extended() ? input.bitmap : 0;
  const L2Entry entry = decode_l2(input.raw, bitmap, geometry, input.version(), input.data_file());
  for (unsigned i = 0; i < kSubclustersPerCluster; ++i) (void)entry.kind(i);
  const bool compressed = entry.storage == Storage::Compressed;
  if (compressed) {
    // At least one byte, to the end of some sector.
    require(entry.compressed_bytes > 0 && (entry.host.bytes() + entry.compressed_bytes) % kSectorSize == 0);
  }
  const RawL2Entry encoded = encode_l2(entry, geometry);
  // Bit 0 of an extended entry means nothing, to us and to QEMU.
  const std::uint64_t meaning = input.extended() && !compressed ? ~std::uint64_t{1} : ~std::uint64_t{0};
  if (!compressed || format_violation(entry, geometry).empty()) {
    require(encoded == RawL2Entry{input.raw & meaning, bitmap});
  }
}

void try_bitmap_table(const Input& input) {
  const BitmapTableEntry entry = decode_bitmap_table_entry(input.raw);
  (void)format_violation(entry, input.geometry());
  require((entry.data.bytes() | entry.reserved | (entry.ones ? 1U : 0U)) == input.raw);
}

// A refcount bit by bit: big-endian from a byte on, from the least significant bit up below.
std::uint64_t refcount_by_bits(std::span<const std::byte> block, std::uint64_t index, unsigned order) {
  std::uint64_t value = 0;
  const std::uint64_t bits = std::uint64_t{1} << order;
  for (std::uint64_t i = 0; i < bits; ++i) {
    const std::uint64_t at = index * bits + i;
    const std::uint64_t bit = std::to_integer<std::uint64_t>(block[at / 8]) >> (at % 8) & 1;
    const std::uint64_t weight = order < 3 ? i : (bits / 8 - 1 - i / 8) * 8 + i % 8;
    value |= bit << weight;
  }
  return value;
}

void try_refcounts(std::span<const std::byte> block) {
  for (unsigned order = 0; order <= kMaxRefcountOrder; ++order) {
    for (std::uint64_t i = 0; i < refcounts_per_block(block.size(), order); ++i) {
      require(decode_refcount(block, i, order) == refcount_by_bits(block, i, order));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input{};
  if (size < sizeof(input)) return 0;
  std::memcpy(&input, data, sizeof(input));
  require(encode_l1(decode_l1(input.raw)) == input.raw);
  try_l2(input);
  try_bitmap_table(input);
  try_refcounts(std::as_bytes(std::span(data, sizeof(input))));
  return 0;
}
