#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "extent/file.h"
#include "qcow2/entry.h"
#include "qcow2/header.h"
#include "qcow2/identity.h"

namespace qchain {

/// Where the bytes of a range are, in one layer.
struct Mapping {
  GuestRange range;
  Kind kind = Kind::Inherit;
  Storage storage = Storage::None;
  /// Plain: of the first byte of the range. Compressed: of the cluster's stream.
  HostOffset host;
  std::uint64_t compressed_bytes = 0;  ///< Upper bound of the stream's length.
  std::size_t layer = 0;               ///< Index in the chain, 0 at the top.

  friend bool operator==(const Mapping&, const Mapping&) = default;
};

/// Adds `mapping` at the end, merged with the last one if it continues it.
void append(std::vector<Mapping>& mappings, const Mapping& mapping);

/// One qcow2 file, opened for reading. Tables are read on demand and not kept, so that an image needs no
/// memory in proportion to its size. Thread-safe.
class Image {
 public:
  /// Decodes the header. Throws Error as decode_header() does.
  explicit Image(File file);

  const File& file() const noexcept { return file_; }
  const std::string& path() const noexcept { return file_.path(); }
  const Header& header() const noexcept { return header_; }
  const Geometry& geometry() const noexcept { return geometry_; }
  const std::optional<Identity>& identity() const noexcept { return identity_; }
  std::uint64_t file_size() const noexcept { return file_size_; }

  /// Where data clusters are: the file itself, or the external data file once it is attached.
  const File& data() const noexcept { return data_file_ ? *data_file_ : file_; }
  std::uint64_t data_size() const noexcept { return data_size_; }
  bool has_data_file() const noexcept { return data_file_.has_value(); }
  /// For check_entry(). The length of a data file that was not opened is unknown.
  EntryBounds bounds() const noexcept;
  void attach_data_file(File data_file);

  /// Throws Error (Incomplete), naming them, if the image uses features that are not supported.
  void require_readable() const;

  /// Reads a compressed cluster; cluster.size() is the cluster size. Throws Error (Mismatch).
  void read_compressed(const Mapping& mapping, std::span<std::byte> cluster) const;

 private:
  File file_;
  std::optional<File> data_file_;
  std::uint64_t file_size_;
  std::uint64_t data_size_;
  Header header_;
  Geometry geometry_;
  std::optional<Identity> identity_;
};

/// Maps ranges of one image. Caches the part of each table that it read last: a query for a short range reads
/// little, one for a long range reads whole tables. For one thread at a time.
class Mapper {
 public:
  explicit Mapper(const Image& image) : image_(image) {}

  /// Appends the mapping of `range` (inside the disk) to `mappings`, in order, up to its end or until there
  /// are `max` of them. Returns where it ends. Throws Error (Mismatch), naming file, offset and value, for an
  /// entry that violates the format or points outside the file.
  GuestOffset map(const GuestRange& range, std::size_t max, std::vector<Mapping>& mappings);

 private:
  // A part of a table: entries [first, first + raw.size()).
  struct Window {
    HostOffset table;
    std::uint64_t first = 0;
    std::vector<std::byte> bytes;
  };

  std::uint64_t word(Window& window, HostOffset table, std::uint64_t index, std::uint64_t wanted,
                     std::uint64_t table_words);
  static std::uint64_t repeats(const Window& window, std::uint64_t index);
  HostOffset l2_table(std::uint64_t l1_index, GuestRange& covered);
  void map_cluster(const L2Entry& entry, GuestOffset cluster, const GuestRange& part,
                   std::vector<Mapping>& mappings) const;
  void require_valid(const L2Entry& entry, GuestOffset cluster, const GuestRange& part) const;

  const Image& image_;
  Window l1_;
  Window l2_;
};

}  // namespace qchain
