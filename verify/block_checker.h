#pragma once

#include <span>
#include <string>

#include "qcow2/chain.h"
#include "verify/chain_digests.h"

namespace qchain {

/// Checks blocks against stored digests of one algorithm. One thread at a time.
class BlockChecker {
 public:
  explicit BlockChecker(Algorithm algorithm) : hasher_(algorithm) {}

  Algorithm algorithm() const noexcept { return hasher_.algorithm(); }

  /// Whether the bytes match the recorded digest of the block.
  bool matches(const StoredBlock& block, std::span<const std::byte> bytes);
  /// For a block of which the layer holds only a part: whether that part matches its recorded digest. False
  /// for other blocks; use matches() for them.
  bool own_bytes_match(const StoredBlock& block, std::span<const std::byte> bytes, const Chain& chain);

  /// The digest of `bytes`, "sha256:HEX".
  std::string name_of(std::span<const std::byte> bytes);
  /// The recorded digest of a block, or "zeros", or "not held".
  std::string name_of(const StoredBlock& block) const;

 private:
  Hasher hasher_;
};

}  // namespace qchain
