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

/// Reports on L1 and L2 entries one by one, without a look at any other: what check_entry() says of them, as
/// readers have it, and what breaks the format without being in a reader's way.
class EntryChecker {
 public:
  EntryChecker(const Image& image, Payloads payloads, FindingList& findings);

  void check(const L1Entry& entry, const EntryPlace& place);
  void check(const L2Entry& entry, const EntryPlace& place);

  /// How many of the bytes that a compressed stream claims it has, by decoding it; all of them where it does
  /// not decode.
  std::uint64_t stream_bytes(HostOffset host, std::uint64_t compressed_bytes);

  /// Payloads that were decoded.
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
