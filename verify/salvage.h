// Reading a damaged chain as far as it can be read, with a list of what is lost.
#pragma once

#include <memory>

#include "verify/proof.h"

namespace qchain {

/// A chain whose tables may be damaged: what they do not tell is data that cannot be read. The chain has to
/// outlive it.
class SalvageDevice : public BlockDevice {
 public:
  explicit SalvageDevice(Chain& chain) : chain_(chain) {}
  std::string name() const override { return chain_.name(); }
  std::uint64_t size() const override { return chain_.size(); }
  Extents extents(const GuestRange& range) override;
  std::unique_ptr<Reader> open_reader() override { return chain_.open_reader(); }

 private:
  Chain& chain_;
};

/// Lists what cannot be read and what is not what the manifests say, instead of ending there. `digests`:
/// nullptr where none are to be looked at. `proof` takes the list; all three have to outlive the stages.
StageFactory salvage_stage(const Chain& chain, ChainDigests* digests, Proof& proof);

}  // namespace qchain
