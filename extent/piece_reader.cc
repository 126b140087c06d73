#include "extent/piece_reader.h"

#include <algorithm>

namespace qchain {

namespace {
constexpr std::size_t kBlock = std::size_t{64} << 10;
}

void PieceReader::read(const Piece& piece, std::span<std::byte> buffer, std::vector<ReadRequest>& data,
                       const OnUnread& on_unread) {
  data.clear();
  wanted_.clear();
  for (const Extent& run : piece.runs) {
    if (run.kind != Kind::Data) continue;
    // A run may begin inside a unit, if blocks are smaller than units.
    const std::span<std::byte> padded =
        buffer.first(align_up(run.range.end.bytes(), unit_) - run.range.begin.bytes());
    data.push_back({run.range.begin, padded.first(run.range.length())});
    const std::uint64_t there = intersect(run.range, guest_range(0, size_)).length();
    if (there > 0) wanted_.push_back({run.range.begin, padded.first(there)});
    std::ranges::fill(padded.subspan(there), std::byte{0});
    buffer = buffer.subspan(padded.size());
  }
  try {
    reader_->read(wanted_);
  } catch (const Error& error) {
    if (!is_local(error)) throw;
    read_by_block(on_unread);
  }
}

void PieceReader::read_by_block(const OnUnread& on_unread) {
  for (ReadRequest rest : wanted_) {
    while (!rest.into.empty()) {
      const ReadRequest block{rest.begin, rest.into.first(std::min(kBlock, rest.into.size()))};
      try {
        reader_->read(std::span(&block, 1));
      } catch (const Error& error) {
        if (!is_local(error)) throw;
        std::ranges::fill(block.into, std::byte{0});
        on_unread(block.range(), error);
      }
      rest = {block.range().end, rest.into.subspan(block.into.size())};
    }
  }
}

}  // namespace qchain
