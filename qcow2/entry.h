// L1 and L2 table entries. Decoding is total: every bit pattern can be decoded, also a corrupt one. What an
// entry means for the disk is decided in one place, check_entry(): a reader refuses what it calls lost, and a
// checker reports the same as data loss.
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
  std::uint64_t reserved = 0;  ///< Reserved bits that are set; must be 0.

  friend bool operator==(const L1Entry&, const L1Entry&) = default;
};

L1Entry decode_l1(std::uint64_t raw);
std::uint64_t encode_l1(const L1Entry& entry);

/// Where the bytes of a cluster are.
enum class Storage : std::uint8_t {
  None,        ///< Unallocated, or zeros without a host cluster.
  Plain,       ///< A host cluster (for a zero cluster: preallocated, not read).
  Compressed,  ///< A stream of deflate or zstd.
};

/// An L2 entry, standard or extended.
struct L2Entry {
  Storage storage = Storage::None;
  HostOffset host;                     ///< Of the cluster, or of the first byte of the stream.
  std::uint64_t compressed_bytes = 0;  ///< Upper bound of the stream's length.
  bool copied = false;
  std::uint64_t reserved = 0;  ///< Reserved bits that are set; must be 0.
  /// One bit per subcluster, from the least significant one. In a standard entry all bits are equal.
  std::uint32_t allocated = 0;
  std::uint32_t zero = 0;

  friend bool operator==(const L2Entry&, const L2Entry&) = default;

  /// The kind of subcluster `index` (0 to 31). Does not check for both bits set.
  Kind kind(unsigned index) const {
    if ((zero >> index & 1) != 0) return Kind::Zero;
    return (allocated >> index & 1) != 0 ? Kind::Data : Kind::Inherit;
  }
};

/// `version` matters: the zero flag does not exist in version 2. With `data_file`, offset 0 is an
/// allocated cluster where COPIED is set. `bitmap` is the second word of an extended entry.
L2Entry decode_l2(std::uint64_t raw, std::uint64_t bitmap, const Geometry& geometry, unsigned version,
                  bool data_file);

/// How the entry violates the format; empty if it does not. Does not check bounds.
std::string format_violation(const L2Entry& entry, const Geometry& geometry);

/// What is wrong with an entry.
enum class EntryProblem : std::uint8_t {
  None,
  ReservedBits,   ///< Bits are set that must be 0.
  Misaligned,     ///< Its offset is not cluster-aligned.
  PastEnd,        ///< What it points to is past the end of the file.
  Truncated,      ///< The file ends inside what it points to.
  Contradiction,  ///< It contradicts itself or the image.
};

struct EntryCheck {
  EntryProblem problem = EntryProblem::None;
  std::string message;  ///< Describes the problem; empty: none.
  GuestRange lost;      ///< The part of the disk that cannot be read for that reason; empty: all of it can.
};

/// Where the files of an image end.
struct EntryBounds {
  static constexpr std::uint64_t kUnknown = ~std::uint64_t{0};
  std::uint64_t file_bytes = kUnknown;  ///< Of the image: tables and compressed streams are there.
  std::uint64_t data_bytes = kUnknown;  ///< Of the file that data clusters are in.
  bool data_file = false;               ///< Data clusters are in another file, at the guest's offset.
};

/// What an entry means for the disk. `visible`: the part of the disk that it maps, up to the end of the disk;
/// it begins where the range of the entry begins. As in QEMU, an unaligned offset makes the cluster
/// unreadable even if it is only the preallocation of a zero cluster, and a truncated L2 table is no problem
/// if the disk ends before the entries that are missing.
EntryCheck check_entry(const L1Entry& entry, const Geometry& geometry, const EntryBounds& bounds,
                       const GuestRange& visible);
EntryCheck check_entry(const L2Entry& entry, const Geometry& geometry, const EntryBounds& bounds,
                       const GuestRange& visible);

/// The two words of an entry. The second is 0 for a standard one.
struct RawL2Entry {
  std::uint64_t entry = 0;
  std::uint64_t bitmap = 0;
  friend bool operator==(const RawL2Entry&, const RawL2Entry&) = default;
};
RawL2Entry encode_l2(const L2Entry& entry, const Geometry& geometry);

}  // namespace qchain
