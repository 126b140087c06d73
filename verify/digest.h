// Digests of bytes, and the blkhash form of a digest of a disk:
//
//     D = H( H(B0) || H(B1) || ... || H(Bn-1) || LE64(length) )
//
// Bi are the disk's blocks of 64 KiB, the last one at its real length; the inner digests are raw bytes.
// Inner digests can be computed in any order; only the outer hash is serial. It is what blksum and
// nbdcopy --blkhash print.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace qchain {

inline constexpr std::uint64_t kDigestBlock = std::uint64_t{64} << 10;

enum class Algorithm { Sha256, Sha512, Blake2b512, Xxh3_128 };

/// "sha256", "sha512", "blake2b512", "xxh3-128".
const char* to_string(Algorithm algorithm) noexcept;
/// Throws Error (Usage) for another name.
Algorithm algorithm_named(const std::string& name);
/// False for a checksum that anyone can forge.
bool is_cryptographic(Algorithm algorithm) noexcept;
/// Of the library that computes them, "3.0.15".
const char* crypto_version() noexcept;
/// Bytes of a digest.
std::size_t digest_size(Algorithm algorithm) noexcept;

/// A digest, raw.
class Digest {
 public:
  Digest() = default;
  explicit Digest(std::size_t size) : size_(size) {}

  std::span<std::byte> bytes() noexcept { return std::span(bytes_).first(size_); }
  std::span<const std::byte> bytes() const noexcept { return std::span(bytes_).first(size_); }
  /// In lower-case hexadecimal.
  std::string hex() const;
  friend bool operator==(const Digest&, const Digest&) = default;

 private:
  std::array<std::byte, 64> bytes_{};
  std::size_t size_ = 0;
};

/// A running hash. One thread at a time.
class Hasher {
 public:
  explicit Hasher(Algorithm algorithm);
  ~Hasher();
  Hasher(Hasher&&) noexcept;
  Hasher& operator=(Hasher&&) noexcept;

  Algorithm algorithm() const noexcept { return algorithm_; }
  void add(std::span<const std::byte> bytes);
  /// The digest of what was added; begins anew.
  Digest finish();
  /// The digest of `bytes` alone. Not in the middle of add().
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

  /// The inner digest of the next block of `length` bytes: kDigestBlock, but for the last one.
  void add_block(const Digest& inner, std::uint64_t length);
  /// The next `length` bytes are zeros; a multiple of kDigestBlock, but for the last ones.
  void add_zeros(std::uint64_t length);
  Digest finish();

 private:
  Hasher outer_;
  Hasher inner_;
  std::vector<std::byte> zero_blocks_;  // the digests of many blocks of zeros, side by side
  std::uint64_t length_ = 0;
};

}  // namespace qchain
