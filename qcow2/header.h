// The header of an image, decoded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "extent/error.h"
#include "extent/range.h"
#include "qcow2/geometry.h"

namespace qchain {

enum class Compression : std::uint8_t { Deflate = 0, Zstd = 1 };

/// A header extension that is kept as it is.
struct Extension {
  std::uint32_t id = 0;
  std::string data;
  friend bool operator==(const Extension&, const Extension&) = default;
};

struct Header {
  unsigned version = 3;
  unsigned cluster_bits = 16;
  std::uint64_t virtual_size = 0;  ///< Bytes.
  std::uint32_t crypt_method = 0;
  std::uint64_t l1_entries = 0;
  HostOffset l1_table;
  HostOffset refcount_table;
  std::uint64_t refcount_table_clusters = 0;
  std::uint32_t snapshot_count = 0;
  HostOffset snapshots;
  std::uint64_t incompatible_features = 0;
  std::uint64_t compatible_features = 0;
  std::uint64_t autoclear_features = 0;
  unsigned refcount_order = 4;
  std::uint8_t compression_type = 0;
  std::string backing_name;  ///< Empty: no backing file.
  std::optional<std::string> backing_format;
  std::string data_file_name;           ///< May be empty even if there is an external data file.
  std::optional<std::string> identity;  ///< The JSON of our extension.
  std::vector<Extension> other_extensions;

  friend bool operator==(const Header&, const Header&) = default;

  bool has_incompatible(std::uint64_t feature) const { return (incompatible_features & feature) != 0; }
  Geometry geometry() const;
  Compression compression() const { return static_cast<Compression>(compression_type); }
  /// Names of the set feature bits and other traits, for people: "extended L2", "zstd", ...
  std::vector<std::string> features() const;
  /// The features that make the image unreadable for this program: "LUKS encryption", ... Empty: none.
  std::vector<std::string> unsupported() const;
};

/// There is no qcow2 header: perhaps a raw image. Its outcome is Mismatch.
class NotQcow2 : public Error {
 public:
  using Error::Error;
};

/// Decodes the header in `cluster0`, the beginning of the file (as much as there is of the first cluster, at
/// most 2 MiB). Throws Error (Mismatch), naming `path`, offset and value, if it violates the format or QEMU's
/// limits, or if the L1 table is not inside the `file_size` bytes of the file; NotQcow2 if it has no magic. A
/// refcount table past the end of the file is not an error here: no byte of the disk depends on it.
Header decode_header(std::span<const std::byte> cluster0, std::uint64_t file_size, const std::string& path);

/// The first cluster of an image. Throws Error (Usage) if the header does not fit in it.
std::vector<std::byte> encode_header(const Header& header);

/// Bytes to read for decode_header(): the cluster size in the header's first bytes, or their number if it is
/// invalid.
std::size_t header_bytes(std::span<const std::byte> first_bytes);

}  // namespace qchain
