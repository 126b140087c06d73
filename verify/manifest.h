// What a layer has to contain: see MANIFEST.md beside this. Encoder and decoder are both here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "extent/file.h"
#include "verify/digest.h"

namespace qchain {

inline constexpr std::uint64_t kMaxRecordBlocks = 4096;

/// What a manifest says before its records.
struct ManifestHeader {
  Algorithm algorithm = Algorithm::Sha256;
  std::uint64_t length = 0;  ///< Bytes of the disk.
  bool overlay = false;
  std::string layer_id;
  std::string parent_id;    ///< Empty: a full layer, or a parent without an identity.
  std::string parent_root;  ///< "ALGORITHM:HEX"; empty: unknown.

  std::uint64_t blocks() const { return divide_up(length, kDigestBlock); }
  /// Bytes of block `index`: kDigestBlock, but for the last one.
  std::uint64_t block_length(std::uint64_t index) const;
  friend bool operator==(const ManifestHeader&, const ManifestHeader&) = default;
};

/// What a layer holds of a block.
enum class Held : std::uint8_t { Data = 1, Zeros = 2, Part = 3 };

/// Neighbouring blocks that a layer holds alike.
struct ManifestRecord {
  Held held = Held::Data;
  std::uint64_t first = 0;  ///< Block.
  std::uint64_t count = 0;
  std::vector<Digest> whole;  ///< Of each block; none for Zeros.
  std::vector<Digest> part;   ///< Of what is held of each; for Part only.

  std::uint64_t end() const { return first + count; }
  friend bool operator==(const ManifestRecord&, const ManifestRecord&) = default;
};

/// "sha256:HEX".
std::string named(Algorithm algorithm, const Digest& digest);

/// Writes a manifest, in the order of the disk.
class ManifestWriter {
 public:
  ManifestWriter(const File& file, const ManifestHeader& header);

  /// The next block that the layer holds; `part` for Held::Part only.
  void add(Held held, std::uint64_t block, const Digest& whole, const Digest& part);
  /// The next blocks, all zeros.
  void add_zeros(std::uint64_t first, std::uint64_t count);
  /// Ends it. nullopt: the root is unknown.
  void finish(const std::optional<Digest>& root);

 private:
  void put(std::span<const std::byte> bytes);
  void flush_record();
  void flush();

  const File& file_;
  ManifestHeader header_;
  Hasher self_;
  std::vector<std::byte> buffer_;
  ManifestRecord record_;
};

/// Reads a manifest, record by record.
class ManifestReader {
 public:
  /// Throws Error: Io where it is not there, BadManifest where the header is not one.
  explicit ManifestReader(const std::string& path);

  const std::string& path() const noexcept { return file_.path(); }
  const ManifestHeader& header() const noexcept { return header_; }

  /// The next record; false at the end, when the manifest's own digest has been found right. Throws Error
  /// (BadManifest), naming the offset. What it gave before that is not proven.
  bool next(ManifestRecord& record);

  /// The root, once next() has returned false. nullopt: unknown.
  const std::optional<Digest>& root() const noexcept { return root_; }

 private:
  [[noreturn]] void bad(const std::string& what) const;
  std::span<const std::byte> take(std::size_t length);
  Digest take_digest();
  void read_header();
  void read_end(std::uint64_t first, std::uint64_t count);

  File file_;
  std::vector<std::byte> buffer_;
  std::size_t used_ = 0;       // of buffer_
  std::uint64_t offset_ = 0;   // in the file, of buffer_
  Hasher self_;
  ManifestHeader header_;
  std::uint64_t next_block_ = 0;
  std::optional<Digest> root_;
};

/// Reads a manifest to its end. Throws as the reader does; returns the root.
std::optional<Digest> check_manifest(const std::string& path);

/// Where the manifest of a layer lies.
std::string manifest_path(const std::string& layer);

}  // namespace qchain
