// Encoder and decoder of manifests, which record what a layer has to contain; see MANIFEST.md.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "extent/file.h"
#include "verify/content_digest.h"

namespace qchain {

/// The maximum number of blocks in a record with digests, which readers hold in memory.
inline constexpr std::uint64_t kMaxRecordBlocks = 256;

/// The work that wrote a manifest: what its digests are of.
enum class Origin : std::uint8_t {
  Pull,     ///< What a live export sent.
  Seal,     ///< What was in the layer when it was sealed; nobody saw where that came from.
  Restore,  ///< What a verified restore wrote.
};

/// "pull", "seal", "restore".
const char* to_string(Origin origin) noexcept;

/// The header of a manifest.
struct ManifestHeader {
  Algorithm algorithm = Algorithm::Sha256;
  std::uint64_t length = 0;  ///< Size of the disk in bytes.
  bool overlay = false;
  std::string layer_id;   ///< Empty: the layer was not written by qchain, and sealed later.
  std::string parent_id;  ///< Empty: a full layer, or a parent without an identity.
  std::optional<ContentDigest> parent_root;
  std::string checkpoint;  ///< As in the layer's identity.
  std::string since;
  Origin origin = Origin::Pull;
  std::string time;         ///< The point in time of the disk: ISO 8601, UTC; empty: unknown.
  std::string sealed_time;  ///< With Seal: when the digests were made.
  std::string file;         ///< Name of the layer's file at that time, without its directory.
  std::string export_name;  ///< As in the layer's identity, as are these:
  std::string domain;
  std::string target;
  /// The layer was rewritten by another tool and sealed again: `overlay`, `parent_id` and `parent_root`
  /// describe the chain as it was sealed, not the layer's identity.
  bool is_resealed = false;
  /// If resealed: the digest in the identity, if different content was sealed at the operator's request.
  std::optional<ContentDigest> accepted;
  /// Signed although layers below were not signed by a trusted key, at the operator's request.
  bool is_signed_unproven = false;

  std::uint64_t blocks() const { return divide_up(length, kDigestBlock); }
  /// The length of block `index`: kDigestBlock; the last block may be shorter.
  std::uint64_t block_length(std::uint64_t index) const;
  friend bool operator==(const ManifestHeader&, const ManifestHeader&) = default;
};

/// How much of a block a layer holds.
enum class Held : std::uint8_t {
  None = 0,   ///< Nothing; not recorded.
  Data = 1,   ///< All of it.
  Zeros = 2,  ///< All of it, as zeros.
  Part = 3,   ///< A part of it, possibly nothing; the digest of the whole block is recorded too.
};

/// Adjacent blocks with the same Held.
struct ManifestRecord {
  Held held = Held::Data;
  std::uint64_t first = 0;  ///< Block index.
  std::uint64_t count = 0;
  std::vector<Digest> whole;  ///< Digest of each block; empty for Zeros.
  std::vector<Digest> part;   ///< Digest of the part of each block that is held; for Part only.

  std::uint64_t end() const { return first + count; }
  friend bool operator==(const ManifestRecord&, const ManifestRecord&) = default;
};

/// An Ed25519 signature over a manifest's own digest, and the public key that it names.
struct ManifestSignature {
  static constexpr std::size_t kKeyBytes = 32;
  static constexpr std::size_t kSignatureBytes = 64;
  std::array<std::byte, kKeyBytes> key{};
  std::array<std::byte, kSignatureBytes> signature{};
  friend bool operator==(const ManifestSignature&, const ManifestSignature&) = default;
};

/// Writes a manifest in guest order.
class ManifestWriter {
 public:
  ManifestWriter(const File& file, const ManifestHeader& header);

  /// Adds the next block that the layer holds; `part` for Held::Part only.
  void add(Held held, std::uint64_t block, const Digest& whole, const Digest& part);
  /// Adds the next blocks, all zeros.
  void add_zeros(std::uint64_t first, std::uint64_t count);
  /// Writes the end of the manifest, and returns its own digest. nullopt: the root is unknown.
  Digest finish(const std::optional<Digest>& root);
  /// After finish(), once.
  void sign(const ManifestSignature& signature);

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

/// Reads a manifest record by record.
class ManifestReader {
 public:
  /// Throws Error: Io if the file cannot be read, BadManifest if the header is invalid.
  explicit ManifestReader(const std::string& path);
  /// `own_digest`: the expected digest of the manifest; nullopt: any.
  explicit ManifestReader(std::shared_ptr<const File> file, std::optional<Digest> own_digest = std::nullopt);

  const std::string& path() const noexcept { return file_->path(); }
  const ManifestHeader& header() const noexcept { return header_; }

  /// The next record; false at the end, after the manifest's own digest was checked. Until then records are
  /// unverified. Throws Error (BadManifest) with the offset.
  bool next(ManifestRecord& record);

  // Valid after next() has returned false:

  /// nullopt: unknown.
  const std::optional<Digest>& root() const noexcept { return root_; }
  /// The SHA-256 of the manifest up to its root, which a signature covers.
  const Digest& own_digest() const noexcept { return own_digest_; }
  /// Not checked here.
  const std::optional<ManifestSignature>& signature() const noexcept { return signature_; }

 private:
  [[noreturn]] void bad(const std::string& what) const;
  std::span<const std::byte> take(std::size_t length);
  Digest take_digest();
  void read_header();
  void read_end(std::uint64_t first, std::uint64_t count);
  void read_signature();

  std::shared_ptr<const File> file_;
  std::optional<Digest> expected_;
  std::vector<std::byte> buffer_;
  std::size_t used_ = 0;      // bytes of buffer_
  std::uint64_t offset_ = 0;  // of buffer_ in the file
  Hasher self_;
  ManifestHeader header_;
  std::uint64_t next_block_ = 0;
  std::optional<Digest> root_;
  Digest own_digest_;
  std::optional<ManifestSignature> signature_;
};

/// The content of a manifest without its records.
struct ManifestSummary {
  ManifestHeader header;
  std::optional<Digest> root;
  Digest own_digest;
  std::optional<ManifestSignature> signature;

  /// The digest of the disk: the root with its algorithm.
  std::optional<ContentDigest> disk_digest() const;
};

/// A manifest that was read to its end and checked, and its open file.
class Manifest {
 public:
  /// Throws like ManifestReader.
  explicit Manifest(std::shared_ptr<const File> file);
  explicit Manifest(const std::string& path);

  const std::string& path() const noexcept { return file_->path(); }
  FileStamp stamp() const { return file_->stamp(); }
  const ManifestSummary& summary() const noexcept { return summary_; }
  const ManifestHeader& header() const noexcept { return summary_.header; }
  /// Reads it again, through the same descriptor. The reader throws at the end if the manifest has changed.
  ManifestReader records() const { return ManifestReader(file_, summary_.own_digest); }

 private:
  std::shared_ptr<const File> file_;
  ManifestSummary summary_;
};

/// Whether a file with the name of a manifest exists. Throws Error (Io) if that cannot be determined.
bool manifest_exists(const std::string& path);
/// The path of a layer's manifest.
std::string manifest_path(const std::string& layer);
/// Its temporary path while layer `id` is published: two files cannot be renamed atomically.
std::string manifest_path(const std::string& layer, const std::string& id);
/// The path at which to read the manifest of layer `id`: the usual path, unless that is another layer's
/// manifest and one exists at the temporary path. An empty `id`: the usual path.
std::string find_manifest(const std::string& layer, const std::string& id);

}  // namespace qchain
