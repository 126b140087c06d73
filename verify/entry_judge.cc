#include "verify/entry_judge.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "extent/interrupt.h"
#include "qcow2/compression.h"
#include "qcow2/format.h"

namespace qchain {

namespace {
constexpr const char* kL1 = "L1 entry";
constexpr const char* kL2 = "L2 entry";
}  // namespace

EntryJudge::EntryJudge(const Image& image, Payloads payloads, FindingList& findings)
    : image_(image),
      geometry_(image.geometry()),
      payloads_(payloads),
      data_file_(image.header().has_incompatible(kIncompatibleDataFile)),
      data_is_known_(!data_file_ || image.has_data_file()),
      can_decode_(image.header().crypt_method == kCryptNone &&
                  image.header().compression_type <= static_cast<unsigned>(Compression::Zstd)),
      findings_(findings) {}

void EntryJudge::find(Flaw flaw, const EntryPlace& place, const char* kind, const std::string& what) {
  find(flaw, place, kind, what, place.visible);
}

// What nobody can see harms nobody.
void EntryJudge::find(Flaw flaw, const EntryPlace& place, const char* kind, const std::string& what,
                      const GuestRange& lost, const HostRange& host) {
  const bool seen = !lost.empty();
  findings_.add({flaw, seen ? Severity::DataLoss : Severity::Harmless, place.at,
                 fmt::format("{}{}: {}", kind, place.active ? "" : " of a snapshot", what), place.raw, host,
                 seen ? std::optional(lost) : std::nullopt});
}

void EntryJudge::judge(const L1Entry& entry, const EntryPlace& place) {
  const std::uint64_t at = entry.table.bytes();
  const std::uint64_t file = image_.file_size();
  const std::uint64_t cluster_size = geometry_.cluster_size();
  if (entry.reserved != 0) find(Flaw::ReservedBits, place, kL1, "reserved bits are set");
  if (at == 0) {
    if (entry.copied) find(Flaw::BadEntry, place, kL1, "COPIED without an L2 table", {});
  } else if (geometry_.offset_in_cluster(at) != 0) {
    find(Flaw::Misaligned, place, kL1, "its L2 table is not at a cluster's beginning");
  } else if (at >= file) {
    find(Flaw::PastEnd, place, kL1, "its L2 table is past the end of the file");
  } else if (cluster_size > file - at) {
    // QEMU reads what is missing as zeros: as unallocated.
    const std::uint64_t whole = (file - at) / geometry_.l2_entry_bytes() * cluster_size;
    const GuestOffset begin = place.visible.begin + std::min(whole, place.visible.length());
    find(Flaw::Truncated, place, kL1, "the file ends inside its L2 table", {begin, place.visible.end},
         {HostOffset(file), HostOffset(at) + cluster_size});
  }
}

void EntryJudge::judge(const L2Entry& entry, const EntryPlace& place) {
  const std::string complaint = complaint_about(entry, geometry_);
  if (!complaint.empty()) judge_rules(entry, place, complaint);
  if (entry.storage == Storage::Compressed) {
    judge_compressed(entry, place);
  } else if (entry.storage == Storage::Plain) {
    if (data_file_ && !entry.copied) {
      find(Flaw::CopiedMissing, place, kL2, "no COPIED, as every cluster in an external data file has", {});
    }
    if (data_is_known_) judge_plain(entry, place);
  }
}

void EntryJudge::judge_rules(const L2Entry& entry, const EntryPlace& place, const std::string& complaint) {
  if (entry.reserved != 0) {
    find(Flaw::ReservedBits, place, kL2, "reserved bits are set");
  } else if (entry.storage == Storage::Plain && geometry_.offset_in_cluster(entry.host.bytes()) != 0) {
    const bool looked_at = entry.allocated != 0;
    find(Flaw::Misaligned, place, kL2, "its host cluster is not at a cluster's beginning",
         looked_at ? place.visible : GuestRange{});
  } else {
    find(Flaw::BadEntry, place, kL2, complaint);
  }
}

void EntryJudge::judge_compressed(const L2Entry& entry, const EntryPlace& place) {
  if (entry.copied) find(Flaw::CopiedSet, place, kL2, "COPIED on a compressed cluster");
  if (data_file_) {
    find(Flaw::BadEntry, place, kL2, "a compressed cluster in an image with an external data file");
    return;
  }
  const std::uint64_t file = image_.file_size();
  if (entry.host >= HostOffset(file)) {
    find(Flaw::PastEnd, place, kL2, "its compressed stream is past the end of the file");
    return;
  }
  if (entry.compressed_bytes >= file - entry.host.bytes() + geometry_.cluster_size()) {
    find(Flaw::PastEnd, place, kL2, "its compressed stream claims a cluster or more past the end of the file",
         {});
  }
  // The length is rounded up to sectors, and QEMU does not pad the last stream of a file.
  const bool may_be_cut = entry.compressed_bytes > file - entry.host.bytes();
  if (!can_decode_ || (payloads_ == Payloads::Doubtful && !may_be_cut)) return;
  const std::string complaint = decode(entry);
  if (complaint.empty()) return;
  const HostRange host{entry.host, entry.host + entry.compressed_bytes};
  if (may_be_cut) {
    find(Flaw::Truncated, place, kL2, "the file ends inside its compressed stream", place.visible, host);
  } else {
    find(Flaw::BadStream, place, kL2, complaint, place.visible, host);
  }
}

std::string EntryJudge::decode(const L2Entry& entry) {
  throw_if_interrupted();
  ++decoded_;
  cluster_.resize(geometry_.cluster_size());
  stream_.resize(entry.compressed_bytes);
  const std::size_t held = image_.file().read_at_most(entry.host, stream_);
  return decompress(image_.header().compression(), std::span(stream_).first(held), cluster_);
}

// The bytes that are to be read from past the end of the file. QEMU writes whole clusters, but
// nobody misses what is behind the disk's end or not allocated.
GuestRange EntryJudge::lost_bytes(const L2Entry& entry, const EntryPlace& place) const {
  const std::uint64_t size = image_.data_size();
  const std::uint64_t held = size > entry.host.bytes() ? size - entry.host.bytes() : 0;
  std::optional<GuestRange> lost;
  const std::uint64_t unit = geometry_.unit();
  for (unsigned i = 0; i < geometry_.units_per_cluster(); ++i) {
    if (entry.kind(i) != Kind::Data) continue;
    const GuestRange seen =
        intersect(place.visible, {place.visible.begin + i * unit, place.visible.begin + (i + 1) * unit});
    const GuestOffset cut = std::max(seen.begin, place.visible.begin + held);
    if (cut >= seen.end) continue;
    lost = GuestRange{lost ? lost->begin : cut, seen.end};
  }
  return lost.value_or(GuestRange{});
}

void EntryJudge::judge_plain(const L2Entry& entry, const EntryPlace& place) {
  const std::uint64_t size = image_.data_size();
  const std::uint64_t at = entry.host.bytes();
  if (data_file_ && !place.visible.empty() && at != place.visible.begin.bytes()) {
    find(Flaw::BadEntry, place, kL2, "not at the guest's offset in the external data file");
    return;
  }
  if (at < size && geometry_.cluster_size() <= size - at) return;
  const HostRange host{HostOffset(at), HostOffset(at) + geometry_.cluster_size()};
  const GuestRange lost = lost_bytes(entry, place);
  if (at >= size) {
    find(Flaw::PastEnd, place, kL2,
         data_file_ ? "its host cluster is past the end of the external data file"
                    : "its host cluster is past the end of the file",
         lost, host);
  } else if (!lost.empty()) {
    find(Flaw::Truncated, place, kL2,
         data_file_ ? "the external data file ends inside its host cluster"
                    : "the file ends inside its host cluster",
         lost, host);
  }
}

}  // namespace qchain
