// The on-disk structures of qcow2, as docs/interop/qcow2 of QEMU has them. Structs mirror the disk:
// big-endian fields, no padding, sizes asserted.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace qchain {

/// An unsigned integer as it is on disk: big-endian, unaligned.
template <class T>
class BigEndian {
  static_assert(std::is_unsigned_v<T>);

 public:
  constexpr BigEndian() = default;
  constexpr BigEndian(T value) {  // NOLINT(google-explicit-constructor): stands for the integer
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      bytes_[i] = static_cast<std::uint8_t>(static_cast<std::uint64_t>(value) >> (8 * (sizeof(T) - 1 - i)));
    }
  }
  constexpr operator T() const {  // NOLINT(google-explicit-constructor)
    std::uint64_t value = 0;
    for (const std::uint8_t byte : bytes_) value = value << 8 | byte;
    return static_cast<T>(value);
  }

 private:
  std::array<std::uint8_t, sizeof(T)> bytes_{};
};

using Be16 = BigEndian<std::uint16_t>;
using Be32 = BigEndian<std::uint32_t>;
using Be64 = BigEndian<std::uint64_t>;

inline constexpr std::uint32_t kMagic = 0x514649FB;  // "QFI\xfb"

// incompatible_features
inline constexpr std::uint64_t kIncompatibleDirty = 1U << 0;        // refcounts untrusted
inline constexpr std::uint64_t kIncompatibleCorrupt = 1U << 1;      // QEMU found damage
inline constexpr std::uint64_t kIncompatibleDataFile = 1U << 2;     // data in another file
inline constexpr std::uint64_t kIncompatibleCompression = 1U << 3;  // compression_type is not 0
inline constexpr std::uint64_t kIncompatibleExtendedL2 = 1U << 4;   // subclusters
/// Bits whose meaning is known. An image with others may contain structures that are not visible here.
inline constexpr std::uint64_t kKnownIncompatible = kIncompatibleDirty | kIncompatibleCorrupt |
                                                    kIncompatibleDataFile | kIncompatibleCompression |
                                                    kIncompatibleExtendedL2;
// compatible_features
inline constexpr std::uint64_t kCompatibleLazyRefcounts = 1U << 0;
// autoclear_features
inline constexpr std::uint64_t kAutoclearBitmaps = 1U << 0;  // the bitmaps extension is consistent
inline constexpr std::uint64_t kAutoclearRawData = 1U << 1;  // the data file is a raw image

inline constexpr std::uint32_t kCryptNone = 0;
inline constexpr std::uint32_t kCryptAes = 1;
inline constexpr std::uint32_t kCryptLuks = 2;

/// The header of version 2: the beginning of every image.
struct HeaderV2 {
  Be32 magic;
  Be32 version;
  Be64 backing_name_offset;  // 0: no backing file
  Be32 backing_name_length;  // bytes, without NUL, <= 1023
  Be32 cluster_bits;
  Be64 virtual_size;  // bytes
  Be32 crypt_method;
  Be32 l1_entries;
  Be64 l1_offset;
  Be64 refcount_table_offset;
  Be32 refcount_table_clusters;
  Be32 snapshot_count;
  Be64 snapshots_offset;
};
static_assert(sizeof(HeaderV2) == 72);

/// What version 3 adds. A field exists only where header_length exceeds its offset.
struct HeaderV3 {
  HeaderV2 v2;
  Be64 incompatible_features;
  Be64 compatible_features;
  Be64 autoclear_features;
  Be32 refcount_order;  // a refcount has 1 << refcount_order bits
  Be32 header_length;   // bytes, >= 104, a multiple of 8
  std::uint8_t compression_type = 0;
  std::array<std::uint8_t, 7> padding{};
};
static_assert(sizeof(HeaderV3) == 112);
inline constexpr std::uint32_t kMinHeaderLengthV3 = 104;

/// A header extension; its data follows, padded to 8 bytes.
struct ExtensionHeader {
  Be32 id;
  Be32 length;  // bytes of data, without the padding
};
static_assert(sizeof(ExtensionHeader) == 8);

inline constexpr std::uint32_t kExtensionEnd = 0;
inline constexpr std::uint32_t kExtensionBackingFormat = 0xE2792ACA;
inline constexpr std::uint32_t kExtensionFeatureNames = 0x6803F857;
inline constexpr std::uint32_t kExtensionBitmaps = 0x23852875;
inline constexpr std::uint32_t kExtensionLuks = 0x0537BE77;
inline constexpr std::uint32_t kExtensionDataFile = 0x44415441;
inline constexpr std::uint32_t kExtensionIdentity = 0x5143484E;  // ours: "QCHN"

inline constexpr std::size_t kMaxBackingName = 1023;

/// Reads an on-disk struct; `bytes` holds at least sizeof(T).
template <class T>
T decode_struct(const std::byte* bytes) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

/// Writes an on-disk struct; `bytes` has room for sizeof(T).
template <class T>
void encode_struct(const T& value, std::byte* bytes) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::memcpy(bytes, &value, sizeof(T));
}

}  // namespace qchain
