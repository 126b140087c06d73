#include "verify/salvage.h"

#include <algorithm>
#include <utility>

namespace qchain {

namespace {

constexpr std::size_t kMaxListed = 1000;

// Of a chain without digests.
class UnreadWatcher : public PieceWatcher {
 public:
  explicit UnreadWatcher(Proof& proof) : proof_(proof) {}

  void plan(const Piece&, const Extents&) override { unread_.clear(); }
  void fetched(std::span<const ReadRequest>) override {}
  void unread(const GuestRange& block, const Error& error) override {
    unread_.push_back({block, error.outcome(), error.what()});
  }
  void commit() override {
    for (const UnreadRange& unread : unread_) proof_.add_unread(unread, kMaxListed);
  }

 private:
  Proof& proof_;
  std::vector<UnreadRange> unread_;
};

class BothWatchers : public PieceWatcher {
 public:
  BothWatchers(std::unique_ptr<PieceWatcher> first, std::unique_ptr<PieceWatcher> second)
      : first_(std::move(first)), second_(std::move(second)) {}

  void plan(const Piece& piece, const Extents& stored) override {
    Piece whole = piece;
    for (Extent& run : whole.runs) {
      if (run.kind == Kind::Inherit) run.kind = Kind::Zero;
    }
    first_->plan(whole, whole.runs);
    second_->plan(piece, stored);
  }
  void fetched(std::span<const ReadRequest> runs) override {
    first_->fetched(runs);
    second_->fetched(runs);
  }
  // The first decides whether what cannot be read ends it; to the second it is zeros, as it is written.
  void unread(const GuestRange& block, const Error& error) override { first_->unread(block, error); }
  void commit() override {
    first_->commit();
    second_->commit();
  }

 private:
  std::unique_ptr<PieceWatcher> first_;
  std::unique_ptr<PieceWatcher> second_;
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

WatcherFactory salvage_watcher(const Chain& chain, ChainDigests* digests, Proof& proof) {
  if (digests == nullptr) return [&proof] { return std::make_unique<UnreadWatcher>(proof); };
  return disk_watcher(chain, *digests, proof, kMaxListed);
}

WatcherFactory both(WatcherFactory first, WatcherFactory second) {
  return [first = std::move(first), second = std::move(second)] {
    return std::make_unique<BothWatchers>(first(), second());
  };
}

}  // namespace qchain
