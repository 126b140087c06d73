#include "qcow2/entry.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

namespace qchain {

namespace {

constexpr std::uint64_t kCompressedFlag = std::uint64_t{1} << 62;
constexpr std::uint64_t kZeroFlag = 1;
constexpr std::uint64_t kL1Reserved = 0x7F000000000001FF;
constexpr std::uint64_t kL2Reserved = 0x3F000000000001FE;
constexpr std::uint32_t kAll = 0xFFFFFFFF;
constexpr std::uint64_t kSector = 512;  // the unit of a compressed stream's length
constexpr std::uint64_t kMaxCompressedOffset = std::uint64_t{1} << 56;

// Bits of a compressed descriptor below the sector count.
unsigned compressed_offset_bits(const Geometry& geometry) { return 70 - geometry.cluster_bits(); }

L2Entry decode_compressed(std::uint64_t raw, const Geometry& geometry) {
  const unsigned bits = compressed_offset_bits(geometry);
  const std::uint64_t payload = raw & (kCompressedFlag - 1);
  const std::uint64_t offset = payload & ((std::uint64_t{1} << bits) - 1);
  const std::uint64_t sectors = (payload >> bits) + 1;
  L2Entry entry;
  entry.storage = Storage::Compressed;
  entry.host = HostOffset(offset);
  entry.compressed_bytes = sectors * kSector - (offset & (kSector - 1));
  entry.copied = (raw & kCopied) != 0;
  entry.reserved = offset & ~(kMaxCompressedOffset - 1);
  entry.allocated = kAll;
  return entry;
}

}  // namespace

L1Entry decode_l1(std::uint64_t raw) {
  return {HostOffset(raw & kEntryOffsetMask), (raw & kCopied) != 0, raw & kL1Reserved};
}

std::uint64_t encode_l1(const L1Entry& entry) {
  return entry.table.bytes() | (entry.copied ? kCopied : 0) | entry.reserved;
}

L2Entry decode_l2(std::uint64_t raw, std::uint64_t bitmap, const Geometry& geometry, unsigned version,
                  bool data_file) {
  if ((raw & kCompressedFlag) != 0) {
    L2Entry entry = decode_compressed(raw, geometry);
    entry.reserved |= bitmap;  // a compressed cluster has no subclusters
    return entry;
  }
  L2Entry entry;
  entry.host = HostOffset(raw & kEntryOffsetMask);
  entry.copied = (raw & kCopied) != 0;
  const bool allocated = entry.host != HostOffset(0) || (data_file && entry.copied);
  entry.storage = allocated ? Storage::Plain : Storage::None;
  if (geometry.extended_l2()) {
    entry.reserved = raw & kL2Reserved;
    entry.allocated = static_cast<std::uint32_t>(bitmap);
    entry.zero = static_cast<std::uint32_t>(bitmap >> 32);
    return entry;
  }
  const bool zero = version >= 3 && (raw & kZeroFlag) != 0;
  entry.reserved = raw & (version >= 3 ? kL2Reserved : kL2Reserved | kZeroFlag);
  entry.zero = zero ? kAll : 0;
  entry.allocated = allocated && !zero ? kAll : 0;
  return entry;
}

std::string format_violation(const L2Entry& entry, const Geometry& geometry) {
  if (entry.reserved != 0) return fmt::format("reserved bits {:#x} are set", entry.reserved);
  if (entry.storage == Storage::Compressed) return {};
  if ((entry.allocated & entry.zero) != 0) {
    return fmt::format("subclusters {:#010x} are both allocated and zero", entry.allocated & entry.zero);
  }
  if (entry.allocated != 0 && entry.storage == Storage::None) {
    return fmt::format("subclusters {:#010x} are allocated without a host cluster", entry.allocated);
  }
  if (geometry.offset_in_cluster(entry.host.bytes()) != 0) {
    return fmt::format("host offset {:#x} is not a multiple of the cluster size {:#x}", entry.host.bytes(),
                       geometry.cluster_size());
  }
  return {};
}

namespace {

// The range that would be read from past the end of the file. QEMU writes whole clusters, but what is past
// the end of the disk or not allocated may be missing.
GuestRange past_the_end(const L2Entry& entry, const Geometry& geometry, const EntryBounds& bounds,
                        const GuestRange& visible) {
  const std::uint64_t held =
      bounds.data_bytes > entry.host.bytes() ? bounds.data_bytes - entry.host.bytes() : 0;
  std::optional<GuestRange> lost;
  const std::uint64_t unit = geometry.unit();
  for (unsigned i = 0; i < geometry.units_per_cluster(); ++i) {
    if (entry.kind(i) != Kind::Data) continue;
    const GuestRange seen = intersect(visible, {visible.begin + i * unit, visible.begin + (i + 1) * unit});
    const GuestOffset cut = std::max(seen.begin, visible.begin + std::min(held, geometry.cluster_size()));
    if (cut >= seen.end) continue;
    lost = GuestRange{lost ? lost->begin : cut, seen.end};
  }
  return lost.value_or(GuestRange{});
}

EntryProblem problem_kind(const L2Entry& entry, const Geometry& geometry) {
  if (entry.reserved != 0) return EntryProblem::ReservedBits;
  const bool aligned = geometry.offset_in_cluster(entry.host.bytes()) == 0;
  return entry.storage == Storage::Plain && !aligned ? EntryProblem::Misaligned : EntryProblem::Contradiction;
}

EntryCheck check_plain(const L2Entry& entry, const Geometry& geometry, const EntryBounds& bounds,
                       const GuestRange& visible) {
  const std::uint64_t at = entry.host.bytes();
  if (bounds.data_file && !visible.empty() && at != visible.begin.bytes()) {
    return {EntryProblem::Contradiction,
            fmt::format("host offset {:#x} in the external data file is not equal to the guest offset", at),
            visible};
  }
  if (at < bounds.data_bytes && geometry.cluster_size() <= bounds.data_bytes - at) return {};
  const GuestRange lost = past_the_end(entry, geometry, bounds, visible);
  const char* const file = bounds.data_file ? "the external data file" : "the file";
  if (at >= bounds.data_bytes) {
    return {EntryProblem::PastEnd, fmt::format("its host cluster is past the end of {}", file), lost};
  }
  if (lost.empty()) return {};
  return {EntryProblem::Truncated, fmt::format("{} ends inside its host cluster", file), lost};
}

}  // namespace

EntryCheck check_entry(const L1Entry& entry, const Geometry& geometry, const EntryBounds& bounds,
                       const GuestRange& visible) {
  const std::uint64_t at = entry.table.bytes();
  if (entry.reserved != 0) {
    return {EntryProblem::ReservedBits, fmt::format("reserved bits {:#x} are set", entry.reserved), visible};
  }
  if (at == 0) return {};
  if (geometry.offset_in_cluster(at) != 0) {
    return {EntryProblem::Misaligned, "its L2 table is not cluster-aligned", visible};
  }
  if (at >= bounds.file_bytes) {
    return {EntryProblem::PastEnd, "its L2 table is past the end of the file", visible};
  }
  const std::uint64_t held = bounds.file_bytes - at;
  if (held >= geometry.cluster_size()) return {};
  const std::uint64_t mapped = held / geometry.l2_entry_bytes() * geometry.cluster_size();
  const GuestOffset begin = visible.begin + std::min(mapped, visible.length());
  const GuestRange lost{begin, visible.end};
  return {EntryProblem::Truncated,
          lost.empty() ? "the file ends inside its L2 table, after the entries that the disk needs"
                       : "the file ends inside its L2 table",
          lost};
}

EntryCheck check_entry(const L2Entry& entry, const Geometry& geometry, const EntryBounds& bounds,
                       const GuestRange& visible) {
  std::string problem = format_violation(entry, geometry);
  if (!problem.empty()) return {problem_kind(entry, geometry), std::move(problem), visible};
  if (entry.storage == Storage::None) return {};
  if (entry.storage == Storage::Plain) return check_plain(entry, geometry, bounds, visible);
  if (bounds.data_file) {
    return {EntryProblem::Contradiction, "a compressed cluster in an image with an external data file",
            visible};
  }
  if (entry.host < HostOffset(bounds.file_bytes)) return {};
  return {EntryProblem::PastEnd, "its compressed stream is past the end of the file", visible};
}

RawL2Entry encode_l2(const L2Entry& entry, const Geometry& geometry) {
  const std::uint64_t copied = entry.copied ? kCopied : 0;
  const std::uint64_t bitmap = geometry.extended_l2() ? std::uint64_t{entry.zero} << 32 | entry.allocated : 0;
  if (entry.storage == Storage::Compressed) {
    const std::uint64_t offset = entry.host.bytes();
    const std::uint64_t last = offset + entry.compressed_bytes - 1;
    const std::uint64_t more_sectors = last / kSector - offset / kSector;
    return {kCompressedFlag | more_sectors << compressed_offset_bits(geometry) | offset | copied, 0};
  }
  const std::uint64_t zero = !geometry.extended_l2() && entry.zero != 0 ? kZeroFlag : 0;
  return {entry.host.bytes() | copied | zero | entry.reserved, bitmap};
}

}  // namespace qchain
