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

  /// Whether the bytes are what the block was when it was recorded.
  bool matches(const StoredBlock& block, std::span<const std::byte> bytes);
  /// Whether the bytes of the block that the layer holds itself are what was written. Where it holds all of
  /// the block, that is not told from matches(): false.
  bool own_bytes_match(const StoredBlock& block, std::span<const std::byte> bytes, const Chain& chain);

  /// "sha256:HEX" of some bytes.
  std::string name_of(std::span<const std::byte> bytes);
  /// Of a recorded block: the same, or "zeros", or "not held".
  std::string name_of(const StoredBlock& block) const;

 private:
  Hasher hasher_;
};

}  // namespace qchain
