#include "extent/memory_device.h"

#include <algorithm>
#include <utility>

namespace qchain {

namespace {

class MemoryReader : public Reader {
 public:
  explicit MemoryReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  void read(std::span<const ReadRequest> batch) override {
    for (const ReadRequest& request : batch) {
      std::ranges::copy(bytes_.subspan(request.begin.bytes(), request.into.size()), request.into.begin());
    }
  }

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace

MemoryDevice::MemoryDevice(std::vector<std::byte> bytes, Extents extents, std::uint64_t answer_limit)
    : bytes_(std::move(bytes)), extents_(std::move(extents)), answer_limit_(answer_limit) {}

Extents MemoryDevice::extents(const GuestRange& range) {
  const GuestRange answered = guest_range(range.begin.bytes(), std::min(range.length(), answer_limit_));
  return collect(clip(stream(extents_), answered));
}

std::unique_ptr<Reader> MemoryDevice::open_reader() { return std::make_unique<MemoryReader>(bytes_); }

}  // namespace qchain
