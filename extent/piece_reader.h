#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "extent/block_device.h"
#include "extent/error.h"
#include "extent/piece.h"

namespace qchain {

/// Reads the data of pieces; the one place that decides what is read again after a failure.
class PieceReader {
 public:
  /// Told of each block of 64 KiB that cannot be read; its bytes are zeros. Called in the handler of the
  /// error.
  using OnUnread = std::function<void(const GuestRange& block, const Error& error)>;

  /// `size`: of the disk, in bytes; past it there are zeros. In memory each run is padded with zeros to a
  /// multiple of `unit` of the disk, a power of two.
  PieceReader(std::unique_ptr<Reader> reader, std::uint64_t size, std::uint64_t unit = 1)
      : reader_(std::move(reader)), size_(size), unit_(unit) {}

  /// Reads the Data runs of `piece` into `buffer`, one behind the other; `data` gets a request for each. If
  /// that fails, reads block by block, if other bytes may be readable. Throws Error.
  void read(const Piece& piece, std::span<std::byte> buffer, std::vector<ReadRequest>& data,
            const OnUnread& on_unread);

  Reader& reader() const noexcept { return *reader_; }

 private:
  void read_by_block(const OnUnread& on_unread);

  std::unique_ptr<Reader> reader_;
  std::uint64_t size_;
  std::uint64_t unit_;
  std::vector<ReadRequest> wanted_;  // of the piece, as far as the disk reaches
};

}  // namespace qchain
