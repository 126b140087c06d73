// L1 and L2 table entries. Decoding is total: every bit pattern means something, if only "corrupt
// here"; judging what that means is for those who read (they refuse) and those who check (they report).
#pragma once

#include <cstdint>
#include <string>

#include "extent/extent.h"
#include "qcow2/geometry.h"

namespace qchain {

inline constexpr std::uint64_t kCopied = std::uint64_t{1} << 63;  // refcount is exactly 1
inline constexpr std::uint64_t kEntryOffsetMask = 0x00FFFFFFFFFFFE00;

/// An L1 entry.
struct L1Entry {
  HostOffset table;  ///< Of the L2 table; 0: none, all of its range is unallocated.
  bool copied = false;
  std::uint64_t reserved = 0;  ///< Reserved bits that are set: has to be 0.

  friend bool operator==(const L1Entry&, const L1Entry&) = default;
};

L1Entry decode_l1(std::uint64_t raw);
std::uint64_t encode_l1(const L1Entry& entry);

/// Where the bytes of a cluster are.
enum class Storage : std::uint8_t {
  None,        ///< Unallocated, or zeros without a cluster behind them.
  Plain,       ///< A host cluster (for a zero cluster: preallocated, not looked at).
  Compressed,  ///< A stream of deflate or zstd.
};

/// An L2 entry, standard or extended.
struct L2Entry {
  Storage storage = Storage::None;
  HostOffset host;                     ///< Of the cluster, or of the first byte of the stream.
  std::uint64_t compressed_bytes = 0;  ///< Upper bound of the stream's length.
  bool copied = false;
  std::uint64_t reserved = 0;  ///< Reserved bits that are set: has to be 0.
  /// One bit a subcluster, from the least significant one. A standard entry counts as one subcluster
  /// that is repeated: all bits equal.
  std::uint32_t allocated = 0;
  std::uint32_t zero = 0;

  friend bool operator==(const L2Entry&, const L2Entry&) = default;

  /// What subcluster `index` (0 to 31) is; an allocated bit beside a zero bit is judged elsewhere.
  Kind kind(unsigned index) const {
    if ((zero >> index & 1) != 0) return Kind::Zero;
    return (allocated >> index & 1) != 0 ? Kind::Data : Kind::Inherit;
  }
};

/// `version` matters: the zero flag does not exist in version 2. With `data_file`, offset 0 is an
/// allocated cluster where COPIED is set. `bitmap` is the second word of an extended entry.
L2Entry decode_l2(std::uint64_t raw, std::uint64_t bitmap, const Geometry& geometry, unsigned version,
                  bool data_file);

/// What the entry's words break of the format's rules; empty where nothing. Bounds are not looked at.
std::string complaint_about(const L2Entry& entry, const Geometry& geometry);

/// The two words of an entry. The second is 0 for a standard one.
struct RawL2Entry {
  std::uint64_t entry = 0;
  std::uint64_t bitmap = 0;
  friend bool operator==(const RawL2Entry&, const RawL2Entry&) = default;
};
RawL2Entry encode_l2(const L2Entry& entry, const Geometry& geometry);

}  // namespace qchain
