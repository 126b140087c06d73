#include "qcow2/header.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "extent/error.h"
#include "qcow2/format.h"

namespace qchain {

namespace {

constexpr std::uint32_t kMaxSnapshots = 65536;
constexpr std::uint64_t kExtensionAlignment = 8;

// Throws for one image: every message begins with its path.
class Decoder {
 public:
  Decoder(std::span<const std::byte> bytes, std::uint64_t file_size, const std::string& path)
      : bytes_(bytes), file_size_(file_size), path_(path) {}

  Header decode() {
    decode_fields();
    validate_fields();
    decode_extensions();
    decode_backing_name();
    return std::move(header_);
  }

 private:
  [[noreturn]] void corrupt(const std::string& what) const {
    throw Error(Outcome::Mismatch, fmt::format("{}: {}", path_, what));
  }

  void decode_fields() {
    if (bytes_.size() < sizeof(HeaderV2) || decode_struct<HeaderV2>(bytes_.data()).magic != kMagic) {
      throw NotQcow2(Outcome::Mismatch, fmt::format("{}: not a qcow2 image (no magic at offset 0)", path_));
    }
    const auto v2 = decode_struct<HeaderV2>(bytes_.data());
    header_.version = v2.version;
    if (header_.version != 2 && header_.version != 3) {
      throw Error(Outcome::Incomplete,
                  fmt::format("{}: qcow2 version {} at offset 4; versions 2 and 3 are supported", path_,
                              header_.version));
    }
    header_.cluster_bits = v2.cluster_bits;
    header_.virtual_size = v2.virtual_size;
    header_.crypt_method = v2.crypt_method;
    header_.l1_entries = v2.l1_entries;
    header_.l1_table = HostOffset(v2.l1_offset);
    header_.refcount_table = HostOffset(v2.refcount_table_offset);
    header_.refcount_table_clusters = v2.refcount_table_clusters;
    header_.snapshot_count = v2.snapshot_count;
    header_.snapshots = HostOffset(v2.snapshots_offset);
    backing_name_offset_ = v2.backing_name_offset;
    backing_name_length_ = v2.backing_name_length;
    header_length_ = sizeof(HeaderV2);
    if (header_.version >= 3) decode_v3_fields();
  }

  void decode_v3_fields() {
    if (bytes_.size() < kMinHeaderLengthV3) corrupt("the file ends inside its header");
    HeaderV3 v3;
    std::memcpy(&v3, bytes_.data(), std::min(bytes_.size(), sizeof(v3)));
    header_length_ = v3.header_length;
    if (header_length_ < kMinHeaderLengthV3 || header_length_ % kExtensionAlignment != 0 ||
        header_length_ > bytes_.size()) {
      corrupt(fmt::format("header length {} at offset 100 is not a multiple of 8 from 104 to {}",
                          header_length_, bytes_.size()));
    }
    header_.incompatible_features = v3.incompatible_features;
    header_.compatible_features = v3.compatible_features;
    header_.autoclear_features = v3.autoclear_features;
    header_.refcount_order = v3.refcount_order;
    if (header_length_ > kMinHeaderLengthV3) header_.compression_type = v3.compression_type;
  }

  void validate_fields() const {
    const Header& h = header_;
    if (h.cluster_bits < kMinClusterBits || h.cluster_bits > kMaxClusterBits) {
      corrupt(fmt::format("cluster_bits {} at offset 20 is not in the range {} to {}", h.cluster_bits,
                          kMinClusterBits, kMaxClusterBits));
    }
    if (h.has_incompatible(kIncompatibleExtendedL2) && h.cluster_bits < kMinExtendedL2ClusterBits) {
      corrupt(fmt::format("extended L2 entries with cluster_bits {}, below {}", h.cluster_bits,
                          kMinExtendedL2ClusterBits));
    }
    if (h.refcount_order > kMaxRefcountOrder) {
      corrupt(fmt::format("refcount_order {} at offset 96 is above {}", h.refcount_order, kMaxRefcountOrder));
    }
    if (h.has_incompatible(kIncompatibleCompression) != (h.compression_type != 0)) {
      corrupt(fmt::format("compression type {} at offset 104 does not match incompatible feature bit 3",
                          h.compression_type));
    }
    if ((h.autoclear_features & kAutoclearRawData) != 0 && !h.has_incompatible(kIncompatibleDataFile)) {
      corrupt("autoclear feature bit 1 (raw external data) without an external data file");
    }
    const Geometry geometry = h.geometry();
    if (h.l1_entries > kMaxL1Bytes / sizeof(std::uint64_t)) {
      corrupt(fmt::format("an L1 table of {} entries at offset 36 is larger than {} bytes", h.l1_entries,
                          kMaxL1Bytes));
    }
    if (h.l1_entries < geometry.l1_entries()) {
      corrupt(fmt::format("an L1 table of {} entries at offset 36; a disk of {} bytes needs {}", h.l1_entries,
                          h.virtual_size, geometry.l1_entries()));
    }
    validate_l1_table();
    const std::uint64_t refcount_table_bytes =
        checked_multiply(h.refcount_table_clusters, geometry.cluster_size());
    if (refcount_table_bytes > kMaxRefcountTableBytes) {
      corrupt(fmt::format("a refcount table of {} bytes at offset 56 is larger than {}", refcount_table_bytes,
                          kMaxRefcountTableBytes));
    }
    // Only its offset matters here: reading does not depend on refcounts, and a checker finds out whether the
    // table exists.
    validate_offset("refcount table", h.refcount_table);
    if (h.snapshot_count > kMaxSnapshots) {
      corrupt(
          fmt::format("{} snapshots at offset 60; at most {} are allowed", h.snapshot_count, kMaxSnapshots));
    }
    validate_offset("snapshot table", h.snapshots);
  }

  // As in QEMU, the offset has to be valid even if the table is empty.
  void validate_offset(const char* what, HostOffset offset) const {
    if (header_.geometry().offset_in_cluster(offset.bytes()) != 0) {
      corrupt(fmt::format("{} at {:#x}, which is not a multiple of the cluster size", what, offset.bytes()));
    }
    if (offset > HostOffset(std::numeric_limits<std::int64_t>::max())) {
      corrupt(fmt::format("{} at {:#x}, which is larger than any file offset", what, offset.bytes()));
    }
  }

  void validate_l1_table() const {
    validate_offset("L1 table", header_.l1_table);
    const std::uint64_t length = header_.l1_entries * sizeof(std::uint64_t);
    if (length == 0) return;
    const std::uint64_t begin = header_.l1_table.bytes();
    if (begin <= file_size_ && length <= file_size_ - begin) return;
    corrupt(
        fmt::format("an L1 table of {} bytes at {:#x} ends past the end of the file ({} bytes): the file is "
                    "truncated, or offset 40 is wrong",
                    length, begin, file_size_));
  }

  std::string text_at(std::uint64_t offset, std::uint64_t length) const {
    return {reinterpret_cast<const char*>(bytes_.data()) + offset, length};
  }

  void decode_extensions() {
    std::uint64_t limit = bytes_.size();
    if (backing_name_offset_ != 0) limit = std::min(limit, backing_name_offset_);
    std::vector<std::uint32_t> seen;
    for (std::uint64_t offset = header_length_; offset < limit;) {
      if (limit - offset < sizeof(ExtensionHeader)) {
        corrupt(
            fmt::format("{} bytes are left for a header extension at offset {:#x}, which needs {}, and there "
                        "is no end-of-extensions marker",
                        limit - offset, offset, sizeof(ExtensionHeader)));
      }
      const auto extension = decode_struct<ExtensionHeader>(bytes_.data() + offset);
      const std::uint32_t id = extension.id;
      const std::uint64_t length = extension.length;
      const std::uint64_t data = offset + sizeof(ExtensionHeader);
      if (length > limit - data) {
        corrupt(fmt::format("header extension {:#010x} at offset {:#x} has {} bytes; {} are left", id, offset,
                            length, limit - data));
      }
      if (id == kExtensionEnd) return;
      if (std::ranges::find(seen, id) != seen.end()) {
        corrupt(fmt::format("header extension {:#010x} at offset {:#x} is a duplicate", id, offset));
      }
      seen.push_back(id);
      take_extension(id, text_at(data, length));
      offset = data + align_up(length, kExtensionAlignment);
    }
  }

  void take_extension(std::uint32_t id, std::string data) {
    switch (id) {
      case kExtensionBackingFormat:
        header_.backing_format = std::move(data);
        break;
      case kExtensionDataFile:
        header_.data_file_name = std::move(data);
        break;
      case kExtensionIdentity:
        header_.identity = std::move(data);
        break;
      default:
        header_.other_extensions.push_back({id, std::move(data)});
    }
  }

  void decode_backing_name() {
    if (backing_name_offset_ == 0) return;
    if (backing_name_length_ > kMaxBackingName) {
      corrupt(fmt::format("a backing name of {} bytes at offset 16; at most {} are allowed",
                          backing_name_length_, kMaxBackingName));
    }
    if (backing_name_offset_ < header_length_ || backing_name_offset_ > bytes_.size() ||
        backing_name_length_ > bytes_.size() - backing_name_offset_) {
      corrupt(fmt::format("the backing name at {:#x} is not inside the first cluster", backing_name_offset_));
    }
    header_.backing_name = text_at(backing_name_offset_, backing_name_length_);
  }

  std::span<const std::byte> bytes_;
  const std::uint64_t file_size_;
  const std::string& path_;
  Header header_;
  std::uint64_t header_length_ = 0;
  std::uint64_t backing_name_offset_ = 0;
  std::uint64_t backing_name_length_ = 0;
};

void put(std::vector<std::byte>& out, std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  out.insert(out.end(), bytes.begin(), bytes.end());
}

void put_extension(std::vector<std::byte>& out, std::uint32_t id, std::string_view data) {
  const std::size_t at = out.size();
  out.resize(at + sizeof(ExtensionHeader));
  encode_struct(ExtensionHeader{id, static_cast<std::uint32_t>(data.size())}, out.data() + at);
  put(out, data);
  out.resize(align_up(out.size(), kExtensionAlignment));
}

}  // namespace

Geometry Header::geometry() const {
  return {cluster_bits, has_incompatible(kIncompatibleExtendedL2), virtual_size};
}

std::vector<std::string> Header::features() const {
  std::vector<std::string> names;
  const auto name = [&](bool set, std::string text) {
    if (set) names.push_back(std::move(text));
  };
  name(crypt_method == kCryptAes, "AES encryption");
  name(crypt_method == kCryptLuks, "LUKS encryption");
  name(crypt_method > kCryptLuks, fmt::format("encryption method {}", crypt_method));
  name(has_incompatible(kIncompatibleDirty), "dirty refcounts");
  name(has_incompatible(kIncompatibleCorrupt), "marked corrupt");
  name(has_incompatible(kIncompatibleDataFile), "external data file");
  name((autoclear_features & kAutoclearRawData) != 0, "raw external data");
  name(compression_type == 1, "zstd");
  name(compression_type > 1, fmt::format("compression type {}", compression_type));
  name(has_incompatible(kIncompatibleExtendedL2), "extended L2");
  name((compatible_features & kCompatibleLazyRefcounts) != 0, "lazy refcounts");
  name(snapshot_count != 0, fmt::format("{} internal snapshots", snapshot_count));
  for (std::uint64_t unknown = incompatible_features & ~kKnownIncompatible; unknown != 0;
       unknown &= unknown - 1) {
    names.push_back(fmt::format("unknown incompatible feature bit {}", std::countr_zero(unknown)));
  }
  return names;
}

std::vector<std::string> Header::unsupported() const {
  std::vector<std::string> names;
  if (crypt_method == kCryptAes) names.emplace_back("AES encryption");
  if (crypt_method == kCryptLuks) names.emplace_back("LUKS encryption");
  if (crypt_method > kCryptLuks) names.push_back(fmt::format("encryption method {}", crypt_method));
  if (compression_type > 1) names.push_back(fmt::format("compression type {}", compression_type));
  for (std::uint64_t unknown = incompatible_features & ~kKnownIncompatible; unknown != 0;
       unknown &= unknown - 1) {
    names.push_back(fmt::format("incompatible feature bit {}", std::countr_zero(unknown)));
  }
  return names;
}

Header decode_header(std::span<const std::byte> cluster0, std::uint64_t file_size, const std::string& path) {
  return Decoder(cluster0, file_size, path).decode();
}

std::vector<std::byte> encode_header(const Header& header) {
  std::vector<std::byte> out(sizeof(HeaderV3));
  if (header.backing_format) put_extension(out, kExtensionBackingFormat, *header.backing_format);
  if (!header.data_file_name.empty()) put_extension(out, kExtensionDataFile, header.data_file_name);
  if (header.identity) put_extension(out, kExtensionIdentity, *header.identity);
  for (const Extension& extension : header.other_extensions) {
    put_extension(out, extension.id, extension.data);
  }
  put_extension(out, kExtensionEnd, {});
  const std::size_t backing_name_offset = out.size();
  put(out, header.backing_name);
  const std::uint64_t cluster_size = std::uint64_t{1} << header.cluster_bits;
  if (out.size() > cluster_size) {
    throw Error(Outcome::Usage,
                fmt::format("the header needs {} bytes and a cluster has {}; use larger "
                            "clusters or a shorter path to the parent",
                            out.size(), cluster_size),
                Remedy::LargerClusters);
  }
  HeaderV3 v3;
  v3.v2.magic = kMagic;
  v3.v2.version = header.version;
  if (!header.backing_name.empty()) {
    v3.v2.backing_name_offset = backing_name_offset;
    v3.v2.backing_name_length = static_cast<std::uint32_t>(header.backing_name.size());
  }
  v3.v2.cluster_bits = header.cluster_bits;
  v3.v2.virtual_size = header.virtual_size;
  v3.v2.crypt_method = header.crypt_method;
  v3.v2.l1_entries = static_cast<std::uint32_t>(header.l1_entries);
  v3.v2.l1_offset = header.l1_table.bytes();
  v3.v2.refcount_table_offset = header.refcount_table.bytes();
  v3.v2.refcount_table_clusters = static_cast<std::uint32_t>(header.refcount_table_clusters);
  v3.v2.snapshot_count = header.snapshot_count;
  v3.v2.snapshots_offset = header.snapshots.bytes();
  v3.incompatible_features = header.incompatible_features;
  v3.compatible_features = header.compatible_features;
  v3.autoclear_features = header.autoclear_features;
  v3.refcount_order = header.refcount_order;
  v3.header_length = sizeof(HeaderV3);
  v3.compression_type = header.compression_type;
  encode_struct(v3, out.data());
  out.resize(cluster_size);
  return out;
}

std::size_t header_bytes(std::span<const std::byte> first_bytes) {
  if (first_bytes.size() < sizeof(HeaderV2)) return first_bytes.size();
  const std::uint32_t cluster_bits = decode_struct<HeaderV2>(first_bytes.data()).cluster_bits;
  if (cluster_bits < kMinClusterBits || cluster_bits > kMaxClusterBits) return first_bytes.size();
  return std::size_t{1} << cluster_bits;
}

}  // namespace qchain
