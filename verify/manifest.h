// What a layer has to contain: see MANIFEST.md beside this. Encoder and decoder are both here.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "extent/file.h"
#include "verify/digest.h"

namespace qchain {

/// Blocks in one record with digests: what a reader has to hold.
inline constexpr std::uint64_t kMaxRecordBlocks = 256;

/// What a manifest says before its records.
struct ManifestHeader {
  Algorithm algorithm = Algorithm::Sha256;
  std::uint64_t length = 0;  ///< Bytes of the disk.
  bool overlay = false;
  std::string layer_id;     ///< Empty: a layer that was not written by us, sealed afterwards.
  std::string parent_id;    ///< Empty: a full layer, or a parent without an identity.
  std::string parent_root;  ///< "ALGORITHM:HEX"; empty: unknown.
  std::string checkpoint;   ///< As the layer's identity has it.
  std::string since;
  /// "seal": sealed afterwards for a layer that another tool has rewritten, so that kind, parent and parent's
  /// root are those of today and not those that the layer's identity records. Empty: they are the recorded
  /// ones.
  std::string origin;
  /// With "seal": the digest that the identity records, where the content was sealed although it is another
  /// one.
  std::string accepted;

  bool is_resealed() const { return origin == "seal"; }
  std::uint64_t blocks() const { return divide_up(length, kDigestBlock); }
  /// Bytes of block `index`: kDigestBlock, but for the last one.
  std::uint64_t block_length(std::uint64_t index) const;
  friend bool operator==(const ManifestHeader&, const ManifestHeader&) = default;
};

/// What a layer holds of a block.
enum class Held : std::uint8_t {
  None = 0,   ///< Nothing. Not in any record.
  Data = 1,   ///< All of it.
  Zeros = 2,  ///< All of it, and it is zeros.
  Part = 3,   ///< A part of it, perhaps none: the block as a whole is recorded all the same.
};

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

/// An Ed25519 signature over a manifest's own digest, and the public key that it claims to be checked with.
struct ManifestSignature {
  static constexpr std::size_t kKeyBytes = 32;
  static constexpr std::size_t kSignatureBytes = 64;
  std::array<std::byte, kKeyBytes> key{};
  std::array<std::byte, kSignatureBytes> signature{};
  friend bool operator==(const ManifestSignature&, const ManifestSignature&) = default;
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
  /// Ends it, and gives the manifest's own digest. nullopt: the root is unknown.
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

/// Reads a manifest, record by record.
class ManifestReader {
 public:
  /// Throws Error: Io where it is not there, BadManifest where the header is not one.
  explicit ManifestReader(const std::string& path);
  /// `own_digest`: what the manifest has to be; nullopt: any.
  explicit ManifestReader(std::shared_ptr<const File> file, std::optional<Digest> own_digest = std::nullopt);

  const std::string& path() const noexcept { return file_->path(); }
  const ManifestHeader& header() const noexcept { return header_; }

  /// The next record; false at the end, when the manifest's own digest has been found right. Throws Error
  /// (BadManifest), naming the offset. What it gave before that is not proven.
  bool next(ManifestRecord& record);

  // Once next() has returned false:

  /// nullopt: unknown.
  const std::optional<Digest>& root() const noexcept { return root_; }
  /// The SHA-256 of the manifest up to its root: what a signature signs.
  const Digest& own_digest() const noexcept { return own_digest_; }
  /// Not judged here.
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
  std::size_t used_ = 0;      // of buffer_
  std::uint64_t offset_ = 0;  // in the file, of buffer_
  Hasher self_;
  ManifestHeader header_;
  std::uint64_t next_block_ = 0;
  std::optional<Digest> root_;
  Digest own_digest_;
  std::optional<ManifestSignature> signature_;
};

/// What stands in a manifest beside its records.
struct ManifestSummary {
  ManifestHeader header;
  std::optional<Digest> root;
  Digest own_digest;
  std::optional<ManifestSignature> signature;

  /// The root, which is the digest of the disk, as "ALGORITHM:HEX"; empty: unknown.
  std::string named_root() const;
};

/// A manifest that was read to its end, and its file, which stays open.
class Manifest {
 public:
  /// Throws as the reader does.
  explicit Manifest(std::shared_ptr<const File> file);
  explicit Manifest(const std::string& path);

  const std::string& path() const noexcept { return file_->path(); }
  const ManifestSummary& summary() const noexcept { return summary_; }
  const ManifestHeader& header() const noexcept { return summary_.header; }
  /// The digest of the disk, "ALGORITHM:HEX"; empty: unknown.
  std::string root() const { return summary_.named_root(); }
  /// Reads it again, through the same descriptor. The reader throws at the end if it has become another one.
  ManifestReader records() const { return ManifestReader(file_, summary_.own_digest); }

 private:
  std::shared_ptr<const File> file_;
  ManifestSummary summary_;
};

/// Whether there is anything under the name of a manifest. Throws Error (Io) where that cannot be told: one
/// that cannot be looked at is not one that is missing.
bool manifest_exists(const std::string& path);
/// Where the manifest of a layer lies.
std::string manifest_path(const std::string& layer);
/// Where it lies for a moment, while layer `id` takes its own name: two names cannot change in one step.
std::string manifest_path(const std::string& layer, const std::string& id);
/// Where the manifest of layer `id` is to be read: one by the first name that is another layer's does not
/// count where there is one by the second. An empty `id`: the first name.
std::string find_manifest(const std::string& layer, const std::string& id);

}  // namespace qchain
