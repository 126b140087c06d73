#include "verify/read_back.h"

#include <utility>

#include "verify/compare.h"

namespace qchain {

namespace {

ReadBack against_digests(Chain& chain, BlockDevice& target, ChainDigests& digests,
                         const ProofOptions& options) {
  Proof proof = prove_disk(target, chain, digests, options);
  digests.finish();
  ReadBack result;
  for (const Damage& damage : proof.damages) {
    result.differences.push_back({damage.range, damage.stored, damage.found});
  }
  result.different_bytes = proof.damaged_bytes;
  result.unread = std::move(proof.unreadable);
  result.unread_bytes = proof.unreadable_bytes;
  result.read_bytes = proof.read_bytes;
  return result;
}

ReadBack against_chain(Chain& chain, BlockDevice& target, const CompareOptions& options) {
  Comparison comparison = compare(chain, target, options);
  ReadBack result;
  for (const Difference& difference : comparison.differences) {
    result.differences.push_back({difference.range, difference.chain_digest, difference.live_digest});
  }
  result.different_bytes = comparison.different_bytes;
  result.unread = std::move(comparison.unread);
  result.unread_bytes = comparison.unread_bytes;
  result.read_bytes = comparison.read_bytes;
  return result;
}

}  // namespace

Outcome ReadBack::outcome() const {
  Outcome outcome = different_bytes == 0 ? Outcome::Done : Outcome::Mismatch;
  for (const Unreadable& part : unread) outcome = worse(outcome, part.outcome);
  return outcome;
}

ReadBack read_back(Chain& chain, BlockDevice& target, ChainDigests* digests, unsigned workers,
                   const std::function<void(std::uint64_t done)>& progress) {
  if (digests != nullptr) {
    ProofOptions options;
    options.workers = workers;
    options.progress = progress;
    return against_digests(chain, target, *digests, options);
  }
  CompareOptions options;
  options.workers = workers;
  options.progress = progress;
  return against_chain(chain, target, options);
}

}  // namespace qchain
