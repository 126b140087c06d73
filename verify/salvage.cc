#include "verify/salvage.h"

#include <vector>

namespace qchain {

namespace {

constexpr std::size_t kMaxListed = 1000;

// Of a chain without digests.
class UnreadStage : public Stage {
 public:
  explicit UnreadStage(Proof& proof) : proof_(proof) {}

  void plan(const Piece&) override { unread_.clear(); }
  void fetched(Batch&) override {}
  bool accept_unread(const GuestRange& block, const Error& error) override {
    unread_.push_back({block, error.outcome(), error.what()});
    return true;
  }
  void commit(const Batch&) override {
    for (const UnreadRange& unread : unread_) proof_.add_unread(unread, kMaxListed);
  }

 private:
  Proof& proof_;
  std::vector<UnreadRange> unread_;
};

}  // namespace

Extents SalvageDevice::extents(const GuestRange& range) {
  for (GuestRange part = range;; part.end = part.begin + align_up(part.length() / 2, kDigestBlock)) {
    try {
      return chain_.extents(part);
    } catch (const Error& error) {
      if (error.outcome() != Outcome::Mismatch && error.outcome() != Outcome::Io) throw;
      if (part.length() <= kDigestBlock) return {{part, Kind::Data}};
    }
  }
}

StageFactory salvage_stage(const Chain& chain, ChainDigests* digests, Proof& proof) {
  if (digests == nullptr) return [&proof] { return std::make_unique<UnreadStage>(proof); };
  return proof_stage(chain, *digests, proof, kMaxListed);
}

}  // namespace qchain
