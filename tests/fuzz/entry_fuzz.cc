// Table entries: decoding is total, and an entry without a complaint is encoded as what it was.

#include <cstdlib>
#include <cstring>

#include "qcow2/entry.h"

using namespace qchain;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  struct Input {
    std::uint64_t raw;
    std::uint64_t bitmap;
    std::uint8_t cluster_bits;
    std::uint8_t flags;
  } input{};
  if (size < sizeof(input)) return 0;
  std::memcpy(&input, data, sizeof(input));
  const bool extended = (input.flags & 1) != 0;
  const unsigned lowest = extended ? kMinExtendedL2ClusterBits : kMinClusterBits;
  const Geometry geometry(lowest + input.cluster_bits % (kMaxClusterBits - lowest + 1), extended,
                          std::uint64_t{1} << 40);
  if (encode_l1(decode_l1(input.raw)) != input.raw) std::abort();

  const std::uint64_t bitmap = extended ? input.bitmap : 0;
  const L2Entry entry = decode_l2(input.raw, bitmap, geometry, 3, (input.flags & 2) != 0);
  if (!complaint_about(entry, geometry).empty()) return 0;
  for (unsigned i = 0; i < kSubclustersPerCluster; ++i) (void)entry.kind(i);
  const RawL2Entry encoded = encode_l2(entry, geometry);
  if (decode_l2(encoded.entry, encoded.bitmap, geometry, 3, (input.flags & 2) != 0) != entry) {
    std::abort();
  }
  return 0;
}
