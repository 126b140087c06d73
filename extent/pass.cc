#include "extent/pass.h"

#include <utility>

#include "extent/engine.h"
#include "extent/page_buffer.h"
#include "extent/piece_reader.h"

namespace qchain {

namespace {

class PassWorker : public Worker {
 public:
  PassWorker(const Pass& pass, std::unique_ptr<Reader> reader)
      : pass_(pass), reader_(std::move(reader), pass.size, pass.unit) {
    for (unsigned i = 0; i < pass.workers.buffers; ++i) buffers_.emplace_back(pass.piece_bytes);
    for (const StageFactory& make_stage : pass.stages) stages_.push_back(make_stage());
    batch_.reader = &reader_.reader();
  }

  bool take() override {
    if (!pass_.pieces(batch_.piece)) return false;
    for (const auto& stage : stages_) stage->plan(batch_.piece);
    return true;
  }

  void fetch() override {
    batch_.buffer = (batch_.buffer + 1) % pass_.workers.buffers;
    for (const auto& stage : stages_) stage->wait(batch_.buffer);
    reader_.read(batch_.piece, buffers_[batch_.buffer].span(), batch_.data,
                 [this](const GuestRange& block, const Error& error) { note_unread(block, error); });
    for (const auto& stage : stages_) stage->fetched(batch_);
  }

  void commit() override {
    for (const auto& stage : stages_) stage->commit(batch_);
    pass_.progress(batch_.piece.runs.back().range.end.bytes());
  }

  void store() override {
    for (const auto& stage : stages_) stage->store(batch_);
  }

  void finish() override {
    for (unsigned i = 0; i < pass_.workers.buffers; ++i) {
      for (const auto& stage : stages_) stage->wait(i);
    }
  }

 private:
  void note_unread(const GuestRange& block, const Error& error) {
    bool accepted = false;
    for (const auto& stage : stages_) accepted = stage->accept_unread(block, error) || accepted;
    if (!accepted) throw;
  }

  const Pass& pass_;
  PieceReader reader_;
  std::vector<ReadBuffer> buffers_;  // aligned: for direct I/O, and hashing is faster
  Batch batch_;
  std::vector<std::unique_ptr<Stage>> stages_;  // destroyed first: they may be writing from the buffers
};

}  // namespace

PieceSource pieces_of(ExtentSource source, const PieceLimits& limits) {
  return [planner = PiecePlanner(std::move(source), limits)](Piece& piece) mutable {
    return planner.next(piece);
  };
}

void run(const Pass& pass) {
  run_workers(
      [&]() -> std::unique_ptr<Worker> {
        std::unique_ptr<Reader> reader = pass.open_reader();
        if (!reader) return nullptr;
        return std::make_unique<PassWorker>(pass, std::move(reader));
      },
      pass.workers.workers);
}

}  // namespace qchain
