#include "verify/block_checker.h"

#include "extent/zero.h"

namespace qchain {

bool BlockChecker::matches(const StoredBlock& block, std::span<const std::byte> bytes) {
  if (block.whole.bytes().empty()) return is_zero(bytes);
  return hasher_.of(bytes) == block.whole;
}

bool BlockChecker::own_bytes_match(const StoredBlock& block, std::span<const std::byte> bytes,
                                   const Chain& chain) {
  if (block.held != Held::Part) return false;
  for (GuestRange rest = block.range; !rest.empty();) {
    for (const Mapping& mapping : chain.map_layer_alone(block.layer, rest)) {
      rest.begin = mapping.range.end;
      if (mapping.kind == Kind::Inherit) continue;
      hasher_.add(bytes.subspan(mapping.range.begin - block.range.begin, mapping.range.length()));
    }
  }
  return hasher_.finish() == block.part;
}

std::string BlockChecker::name_of(std::span<const std::byte> bytes) {
  return ContentDigest{algorithm(), hasher_.of(bytes)}.text();
}

std::string BlockChecker::name_of(const StoredBlock& block) const {
  if (block.held == Held::None) return "not held";
  return block.held == Held::Zeros ? "zeros" : ContentDigest{algorithm(), block.whole}.text();
}

}  // namespace qchain
