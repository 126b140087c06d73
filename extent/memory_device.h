#pragma once

#include <memory>
#include <string>
#include <vector>

#include "extent/block_device.h"

namespace qchain {

/// A disk in memory, for tests: its bytes, and the extents that it reports. extents() covers at most
/// `answer_limit` bytes at a time, so that tests cover short answers.
class MemoryDevice : public BlockDevice {
 public:
  /// `extents` covers the disk, in order and without gaps.
  MemoryDevice(std::vector<std::byte> bytes, Extents extents, std::uint64_t answer_limit);

  std::string name() const override { return "memory"; }
  std::uint64_t size() const override { return bytes_.size(); }
  Extents extents(const GuestRange& range) override;
  std::unique_ptr<Reader> open_reader() override;

 private:
  std::vector<std::byte> bytes_;
  Extents extents_;
  std::uint64_t answer_limit_;
};

}  // namespace qchain
