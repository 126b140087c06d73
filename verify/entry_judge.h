#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "extent/range.h"
#include "qcow2/entry.h"
#include "qcow2/image.h"
#include "verify/finding.h"

namespace qchain {

/// Which compressed payloads a check decodes.
enum class Payloads : std::uint8_t {
  Doubtful,  ///< Those that the end of the file may have cut.
  All,
};

/// Where an entry is, and what can be seen through it.
struct EntryPlace {
  HostOffset at;  ///< Of the entry.
  std::uint64_t raw = 0;
  /// The part of the disk that it maps, as far as somebody can see it. Empty: nobody can.
  GuestRange visible;
  bool active = true;  ///< Of the active tables; else of a snapshot's alone.
};

/// Judges L1 and L2 entries one by one, without a look at any other: their bits, and whether what
/// they point to is in the file.
class EntryJudge {
 public:
  EntryJudge(const Image& image, Payloads payloads, FindingList& findings);

  void judge(const L1Entry& entry, const EntryPlace& place);
  void judge(const L2Entry& entry, const EntryPlace& place);

  /// Payloads that were decoded.
  std::uint64_t decoded() const noexcept { return decoded_; }

 private:
  void find(Flaw flaw, const EntryPlace& place, const char* kind, const std::string& what);
  void find(Flaw flaw, const EntryPlace& place, const char* kind, const std::string& what,
            const GuestRange& lost, const HostRange& host = {});
  void judge_rules(const L2Entry& entry, const EntryPlace& place, const std::string& complaint);
  void judge_compressed(const L2Entry& entry, const EntryPlace& place);
  void judge_plain(const L2Entry& entry, const EntryPlace& place);
  GuestRange lost_bytes(const L2Entry& entry, const EntryPlace& place) const;
  std::string decode(const L2Entry& entry);

  const Image& image_;
  const Geometry geometry_;
  const Payloads payloads_;
  const bool data_file_;      // data clusters are in another file
  const bool data_is_known_;  // which is open, or the image's own
  const bool can_decode_;
  FindingList& findings_;
  std::vector<std::byte> stream_;
  std::vector<std::byte> cluster_;
  std::uint64_t decoded_ = 0;
};

}  // namespace qchain
