#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "extent/range.h"
#include "qcow2/compression.h"
#include "qcow2/entry.h"
#include "qcow2/image.h"
#include "verify/finding.h"

namespace qchain {

/// Which compressed clusters a check decompresses.
enum class Payloads : std::uint8_t {
  Doubtful,  ///< Those that may be truncated by the end of the file.
  All,
};

/// Where an entry is, and which part of the disk it maps.
struct EntryPlace {
  HostOffset at;  ///< The offset of the entry.
  std::uint64_t raw = 0;
  /// The visible part of the range that it maps. Empty: the range is past the end of the disk.
  GuestRange visible;
  bool active = true;  ///< Whether it is in the active tables; else only in those of a snapshot.
};

/// Checks L1 and L2 entries one by one: reports what check_entry() finds, as readers do, and violations of
/// the format that readers can ignore.
class EntryChecker {
 public:
  EntryChecker(const Image& image, Payloads payloads, FindingList& findings);

  void check(const L1Entry& entry, const EntryPlace& place);
  void check(const L2Entry& entry, const EntryPlace& place);

  /// The real length of a compressed stream, found by decompressing it; `compressed_bytes` if that fails.
  std::uint64_t stream_bytes(HostOffset host, std::uint64_t compressed_bytes);

  /// Compressed clusters that were decompressed.
  std::uint64_t decoded() const noexcept { return decoded_; }

 private:
  void find(Flaw flaw, const EntryPlace& place, const char* kind, const std::string& what);
  void find(Flaw flaw, const EntryPlace& place, const char* kind, const std::string& what,
            const GuestRange& lost, const HostRange& host = {});
  void report(const EntryCheck& verdict, const EntryPlace& place, const char* kind, const HostRange& host);
  void check_compressed(const L2Entry& entry, const EntryPlace& place);
  Decoded decode(HostOffset host, std::uint64_t compressed_bytes);

  const Image& image_;
  const Geometry geometry_;
  const Payloads payloads_;
  const EntryBounds bounds_;
  const bool can_decode_;
  FindingList& findings_;
  std::vector<std::byte> stream_;
  std::vector<std::byte> cluster_;
  std::uint64_t decoded_ = 0;
};

}  // namespace qchain
