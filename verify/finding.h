// What a metadata check finds, as values.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "extent/range.h"

namespace qchain {

/// What a finding means for the guest's data.
enum class Severity : std::uint8_t {
  Leak,      ///< Space is lost, or a count is out of date that QEMU repairs; nothing is broken.
  Harmless,  ///< A rule of the format is broken, but no byte of the disk depends on it. QEMU may refuse it.
  DataLoss,  ///< Bytes are lost or wrong, or the next write to the image destroys some.
};
/// "leak", "harmless", "data loss".
const char* to_string(Severity severity) noexcept;

/// What is wrong, as programs tell it apart.
enum class Flaw : std::uint8_t {
  MarkedCorrupt,     ///< QEMU found damage before, and marked the image.
  BadExtension,      ///< A header extension breaks the format.
  ReservedBits,      ///< Bits of an entry are set that have to be 0.
  Misaligned,        ///< An offset that has to be cluster-aligned is not.
  PastEnd,           ///< An offset is past the end of the file.
  Truncated,         ///< The file ends inside what is referenced.
  BadEntry,          ///< An entry contradicts itself or the image.
  BadStream,         ///< A compressed payload does not decode.
  Overlap,           ///< Two structures claim the same host cluster.
  RefcountLow,       ///< Less than the references that there are.
  RefcountHigh,      ///< More: the cluster is never freed.
  RefcountStale,     ///< Either, in an image whose dirty bit says that refcounts are not up to date.
  RefcountPastEnd,   ///< For a cluster past the end of the file.
  BadRefcountBlock,  ///< Refcounts that cannot be read.
  CopiedSet,         ///< COPIED on a cluster that is shared or compressed.
  CopiedMissing,     ///< No COPIED on a cluster with one reference.
  BadSnapshot,       ///< An entry of the snapshot table.
  BadBitmap,         ///< An entry of the bitmap directory.
};
inline constexpr std::size_t kFlaws = 18;

/// The name in reports: "refcount-low".
const char* to_string(Flaw flaw) noexcept;
/// What a user can do about it.
const char* remedy_for(Flaw flaw) noexcept;

/// Bytes [begin, end) of a file.
struct HostRange {
  HostOffset begin;
  HostOffset end;

  std::uint64_t length() const { return end - begin; }
  bool empty() const { return end <= begin; }
  friend bool operator==(const HostRange&, const HostRange&) = default;
};

struct Finding {
  Flaw flaw = Flaw::BadEntry;
  Severity severity = Severity::DataLoss;
  HostOffset at;                       ///< Of the metadata that is damaged; of the first, if there are more.
  std::string what;                    ///< In words.
  std::optional<std::uint64_t> value;  ///< What is at `at`.
  HostRange host;                      ///< The part of the file that it is about; empty: none.
  std::optional<GuestRange> guest;     ///< The part of the disk that it is about, where known.
  std::uint64_t count = 1;             ///< Neighbours that are alike are one finding.
};

/// `finding` in words, without file and remedy.
std::string describe(const Finding& finding);

/// Findings, merged and capped: a million of them are a few lines and exact counts.
class FindingList {
 public:
  /// Adds one; as a part of the last one like it, where the two are neighbours.
  void add(Finding finding);

  const std::vector<Finding>& kept() const noexcept { return kept_; }
  std::vector<Finding>& kept() noexcept { return kept_; }
  /// How many there were, kept or not, before they were merged.
  std::uint64_t count(Flaw flaw) const noexcept { return counts_[index(flaw)]; }
  std::uint64_t count(Severity severity) const noexcept;
  /// Bytes of the file that findings with this flaw are about.
  std::uint64_t host_bytes(Flaw flaw) const noexcept { return host_bytes_[index(flaw)]; }
  std::uint64_t dropped() const noexcept { return dropped_; }

  /// Findings that are kept of one flaw, so that a flood of one does not hide another.
  static constexpr std::size_t kKeptPerFlaw = 100;

 private:
  static std::size_t index(Flaw flaw) noexcept { return static_cast<std::size_t>(flaw); }

  std::vector<Finding> kept_;
  std::array<std::uint64_t, kFlaws> counts_{};
  std::array<std::uint64_t, kFlaws> host_bytes_{};
  std::array<std::uint64_t, 3> by_severity_{};
  // By flaw: the finding that a neighbour is merged into, kept or not.
  struct Last {
    std::optional<std::size_t> kept;  // index in kept_
    Finding finding;                  // what neighbours are compared with
    HostOffset last_at;
  };
  std::array<std::optional<Last>, kFlaws> last_;
  std::array<std::size_t, kFlaws> kept_of_{};
  std::uint64_t dropped_ = 0;
};

}  // namespace qchain
