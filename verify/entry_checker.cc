#include "verify/entry_checker.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "extent/cancellation.h"
#include "qcow2/format.h"

namespace qchain {

namespace {
constexpr const char* kL1 = "L1 entry";
constexpr const char* kL2 = "L2 entry";

Flaw flaw_of(EntryProblem flaw) {
  switch (flaw) {
    case EntryProblem::ReservedBits:
      return Flaw::ReservedBits;
    case EntryProblem::Misaligned:
      return Flaw::Misaligned;
    case EntryProblem::PastEnd:
      return Flaw::PastEnd;
    case EntryProblem::Truncated:
      return Flaw::Truncated;
    case EntryProblem::None:
    case EntryProblem::Contradiction:
      break;
  }
  return Flaw::BadEntry;
}
}  // namespace

EntryChecker::EntryChecker(const Image& image, Payloads payloads, FindingList& findings)
    : image_(image),
      geometry_(image.geometry()),
      payloads_(payloads),
      bounds_(image.bounds()),
      can_decode_(image.header().crypt_method == kCryptNone &&
                  image.header().compression_type <= static_cast<unsigned>(Compression::Zstd)),
      findings_(findings) {}

void EntryChecker::find(Flaw flaw, const EntryPlace& place, const char* kind, const std::string& what) {
  find(flaw, place, kind, what, place.visible);
}

// Damage outside the visible disk is harmless.
void EntryChecker::find(Flaw flaw, const EntryPlace& place, const char* kind, const std::string& what,
                        const GuestRange& lost, const HostRange& host) {
  const bool seen = !lost.empty();
  findings_.add({flaw, seen ? Severity::DataLoss : Severity::Harmless, place.at,
                 fmt::format("{}{}: {}", kind, place.active ? "" : " of a snapshot", what), place.raw, host,
                 seen ? std::optional(lost) : std::nullopt});
}

void EntryChecker::report(const EntryCheck& verdict, const EntryPlace& place, const char* kind,
                          const HostRange& host) {
  if (verdict.problem == EntryProblem::None) return;
  const bool about_the_file =
      verdict.problem == EntryProblem::PastEnd || verdict.problem == EntryProblem::Truncated;
  find(flaw_of(verdict.problem), place, kind, verdict.message, verdict.lost,
       about_the_file ? host : HostRange{});
}

void EntryChecker::check(const L1Entry& entry, const EntryPlace& place) {
  const EntryCheck verdict = check_entry(entry, geometry_, bounds_, place.visible);
  const HostOffset end = entry.table + geometry_.cluster_size();
  const bool is_cut = verdict.problem == EntryProblem::Truncated;
  report(verdict, place, kL1, is_cut ? HostRange{HostOffset(bounds_.file_bytes), end} : HostRange{});
  if (entry.table == HostOffset(0) && entry.copied) {
    find(Flaw::BadEntry, place, kL1, "COPIED is set, but there is no L2 table", {});
  }
}

void EntryChecker::check(const L2Entry& entry, const EntryPlace& place) {
  const EntryCheck verdict = check_entry(entry, geometry_, bounds_, place.visible);
  const bool plain = entry.storage == Storage::Plain;
  report(verdict, place, kL2,
         plain ? HostRange{entry.host, entry.host + geometry_.cluster_size()} : HostRange{});
  if (plain && bounds_.data_file && !entry.copied) {
    find(Flaw::CopiedMissing, place, kL2, "COPIED is not set on a cluster in an external data file", {});
  }
  if (entry.storage != Storage::Compressed) return;
  if (entry.copied) find(Flaw::CopiedSet, place, kL2, "COPIED is set on a compressed cluster");
  const bool is_there =
      verdict.problem == EntryProblem::None || verdict.problem == EntryProblem::ReservedBits;
  if (is_there && !bounds_.data_file && entry.host < HostOffset(bounds_.file_bytes)) {
    check_compressed(entry, place);
  }
}

void EntryChecker::check_compressed(const L2Entry& entry, const EntryPlace& place) {
  const std::uint64_t held = bounds_.file_bytes - entry.host.bytes();
  if (entry.compressed_bytes >= held + geometry_.cluster_size()) {
    find(Flaw::PastEnd, place, kL2,
         "its compressed stream extends a cluster or more past the end of the file", {});
  }
  // The length is rounded up to sectors, but QEMU does not pad the last stream of a file.
  const bool may_be_cut = entry.compressed_bytes > held;
  if (!can_decode_ || (payloads_ == Payloads::Doubtful && !may_be_cut)) return;
  const Decoded decoded = decode(entry.host, entry.compressed_bytes);
  if (decoded.error.empty()) return;
  const HostRange host{entry.host, entry.host + entry.compressed_bytes};
  if (may_be_cut && decoded.truncated) {
    find(Flaw::Truncated, place, kL2, "the file ends inside its compressed stream", place.visible, host);
  } else {
    find(Flaw::BadStream, place, kL2, decoded.error, place.visible, host);
  }
}

std::uint64_t EntryChecker::stream_bytes(HostOffset host, std::uint64_t compressed_bytes) {
  if (!can_decode_) return compressed_bytes;
  const Decoded decoded = decode(host, compressed_bytes);
  return decoded.error.empty() ? decoded.used : compressed_bytes;
}

Decoded EntryChecker::decode(HostOffset host, std::uint64_t compressed_bytes) {
  throw_if_cancelled();
  ++decoded_;
  cluster_.resize(geometry_.cluster_size());
  stream_.resize(compressed_bytes);
  const std::size_t held = image_.file().read_at_most(host, stream_);
  return decompress(image_.header().compression(), std::span(stream_).first(held), cluster_);
}

}  // namespace qchain
