#include "verify/read_back.h"

#include <utility>

#include "verify/compare.h"

namespace qchain {

Findings read_back(Chain& chain, BlockDevice& target, ChainDigests* digests, unsigned workers,
                   const std::function<void(std::uint64_t done)>& progress) {
  if (digests != nullptr) {
    ProofOptions options;
    options.workers = workers;
    options.progress = progress;
    Proof proof = prove_disk(target, chain, *digests, options);
    digests->finish();
    return proof;
  }
  CompareOptions options;
  options.workers = workers;
  options.progress = progress;
  Findings findings = compare(chain, target, options);
  for (Discrepancy& difference : findings.different) {  // the chain has the expected content
    difference.expected = std::exchange(difference.found, std::exchange(difference.live, {}));
  }
  return findings;
}

}  // namespace qchain
