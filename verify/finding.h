// Findings of a metadata check, as values.
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
  Leak,      ///< Space is lost, or a refcount is out of date that QEMU repairs; no rule is violated.
  Harmless,  ///< The format is violated, but no data of the disk is affected. QEMU may refuse the image.
  DataLoss,  ///< Data is lost or wrong, or the next write to the image destroys some.
};
/// "leak", "harmless", "data loss".
const char* to_string(Severity severity) noexcept;

/// What is wrong, for programs.
enum class Flaw : std::uint8_t {
  MarkedCorrupt,     ///< QEMU found damage earlier, and marked the image as corrupt.
  BadExtension,      ///< A header extension is invalid.
  ReservedBits,      ///< Reserved bits of an entry are set.
  Misaligned,        ///< An offset is not cluster-aligned.
  PastEnd,           ///< An offset is past the end of the file.
  Truncated,         ///< The file ends inside a referenced structure.
  BadEntry,          ///< An entry contradicts itself or the image.
  BadStream,         ///< A compressed cluster cannot be decompressed.
  Overlap,           ///< Two structures use the same host cluster.
  RefcountLow,       ///< A refcount is lower than the number of references.
  RefcountHigh,      ///< A refcount is higher: the cluster is leaked.
  RefcountStale,     ///< Either, in an image whose dirty bit is set: its refcounts are out of date.
  RefcountPastEnd,   ///< A refcount of a cluster past the end of the file is not 0.
  BadRefcountBlock,  ///< A refcount block cannot be used.
  CopiedSet,         ///< COPIED is set on a shared or compressed cluster.
  CopiedMissing,     ///< COPIED is not set on a cluster with one reference.
  BadSnapshot,       ///< An entry of the snapshot table is invalid.
  BadBitmap,         ///< A bitmap, or an entry of the bitmap directory, is invalid.
};
inline constexpr std::size_t kFlaws = 18;

/// The name in reports: "refcount-low".
const char* to_string(Flaw flaw) noexcept;

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
  HostOffset at;                       ///< Offset of the damaged metadata; of the first, if there are more.
  std::string what;                    ///< The message.
  std::optional<std::uint64_t> value;  ///< The value at `at`.
  HostRange host;                      ///< The affected range of the file; empty: none.
  std::optional<GuestRange> guest;     ///< The affected range of the disk, if known.
  std::uint64_t count = 1;             ///< How many adjacent findings were merged.
};

/// The text of `finding`, without file and remedy.
std::string describe(const Finding& finding);

/// Findings, merged and capped, with exact counts.
class FindingList {
 public:
  /// Adds a finding; merges it with the last one like it if the two are adjacent.
  void add(Finding finding);

  const std::vector<Finding>& kept() const noexcept { return kept_; }
  std::vector<Finding>& kept() noexcept { return kept_; }
  /// How many were added, before merging and capping.
  std::uint64_t count(Flaw flaw) const noexcept { return counts_[index(flaw)]; }
  std::uint64_t count(Severity severity) const noexcept;
  /// Bytes of the file that findings with this flaw affect.
  std::uint64_t host_bytes(Flaw flaw) const noexcept { return host_bytes_[index(flaw)]; }
  std::uint64_t dropped() const noexcept { return dropped_; }

  /// The limit per flaw, so that many findings of one kind do not hide another.
  static constexpr std::size_t kKeptPerFlaw = 100;

 private:
  static std::size_t index(Flaw flaw) noexcept { return static_cast<std::size_t>(flaw); }

  std::vector<Finding> kept_;
  std::array<std::uint64_t, kFlaws> counts_{};
  std::array<std::uint64_t, kFlaws> host_bytes_{};
  std::array<std::uint64_t, 3> by_severity_{};
  // By flaw: the last finding, into which an adjacent one is merged.
  struct Last {
    std::optional<std::size_t> kept;  // index in kept_
    Finding finding;
    HostOffset last_at;
  };
  std::array<std::optional<Last>, kFlaws> last_;
  std::array<std::size_t, kFlaws> kept_of_{};
  std::uint64_t dropped_ = 0;
};

}  // namespace qchain
