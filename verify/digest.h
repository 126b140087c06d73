// Digests of bytes, and of disks in the blkhash construction:
//
//     D = H( H(B0) || H(B1) || ... || H(Bn-1) || LE64(length) )
//
// Bi are the disk's blocks of 64 KiB, the last one possibly shorter; the inner digests are raw bytes. Inner
// digests can be computed in any order; only the outer hash is serial. blksum and nbdcopy --blkhash print the
// same.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace qchain {

inline constexpr std::uint64_t kDigestBlock = std::uint64_t{64} << 10;

enum class Algorithm { Sha256, Sha512, Blake2b512, Xxh3_128 };

/// "sha256", "sha512", "blake2b512", "xxh3-128".
const char* to_string(Algorithm algorithm) noexcept;
/// nullopt for another name.
std::optional<Algorithm> find_algorithm(const std::string& name) noexcept;
/// Throws Error (Usage) for another name.
Algorithm algorithm_named(const std::string& name);
/// False for algorithms that detect corruption but not tampering.
bool is_cryptographic(Algorithm algorithm) noexcept;
/// The version of OpenSSL, such as "3.0.15".
const char* crypto_version() noexcept;
/// The size of a digest in bytes.
std::size_t digest_size(Algorithm algorithm) noexcept;

/// Lowercase hexadecimal.
std::string hex(std::span<const std::byte> bytes);

/// The raw bytes of a digest.
class Digest {
 public:
  Digest() = default;
  explicit Digest(std::size_t size) : size_(size) {}

  std::span<std::byte> bytes() noexcept { return std::span(bytes_).first(size_); }
  std::span<const std::byte> bytes() const noexcept { return std::span(bytes_).first(size_); }
  std::string hex() const { return qchain::hex(bytes()); }
  friend bool operator==(const Digest&, const Digest&) = default;

 private:
  std::array<std::byte, 64> bytes_{};
  std::size_t size_ = 0;
};

/// An incremental hash. One thread at a time.
class Hasher {
 public:
  explicit Hasher(Algorithm algorithm);
  ~Hasher();
  Hasher(Hasher&&) noexcept;
  Hasher& operator=(Hasher&&) noexcept;

  Algorithm algorithm() const noexcept { return algorithm_; }
  void add(std::span<const std::byte> bytes);
  /// The digest of what was added; starts over.
  Digest finish();
  /// The digest of `bytes` alone. Not between add() and finish().
  Digest of(std::span<const std::byte> bytes);

 private:
  struct State;
  Algorithm algorithm_;
  std::unique_ptr<State> state_;
};

/// The outer hash of a disk. Blocks are added in order.
class DiskDigest {
 public:
  explicit DiskDigest(Algorithm algorithm);

  /// Adds the inner digest of the next block. `length`: kDigestBlock; the last block may be shorter.
  void add_block(const Digest& inner, std::uint64_t length);
  /// Adds `length` zeros: a multiple of kDigestBlock, except at the end of the disk.
  void add_zeros(std::uint64_t length);
  Digest finish();

 private:
  Hasher outer_;
  Hasher inner_;
  std::vector<std::byte> zero_blocks_;  // the digest of a block of zeros, many times
  std::uint64_t length_ = 0;
};

}  // namespace qchain
