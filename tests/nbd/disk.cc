#include "tests/nbd/disk.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <span>

namespace qchain::tests {

Bytes disk_bytes(std::uint64_t size) {
  Bytes bytes(size);
  std::uint64_t mixed = 0;
  for (std::uint64_t i = 0; i < size; ++i) {
    if (i % 8 == 0) {  // splitmix64
      mixed = (i / 8 + 1) * 0x9E3779B97F4A7C15U;
      mixed = (mixed ^ (mixed >> 30U)) * 0xBF58476D1CE4E5B9U;
      mixed = (mixed ^ (mixed >> 27U)) * 0x94D049BB133111EBU;
    }
    bytes[i] = static_cast<std::byte>(mixed >> (8 * (i % 8))) | std::byte{1};
  }
  return bytes;
}

Bytes slice(const Bytes& disk, std::uint64_t begin, std::uint64_t length) {
  const auto first = disk.begin() + static_cast<std::ptrdiff_t>(begin);
  return {first, first + static_cast<std::ptrdiff_t>(length)};
}

NbdTarget target_of(const std::string& uri, std::chrono::milliseconds timeout) {
  NbdTarget target;
  target.uri = uri;
  target.timeout = timeout;
  return target;
}

Bytes read(Reader& reader, std::uint64_t begin, std::uint64_t length) {
  Bytes bytes(length, std::byte{0xEE});
  const ReadRequest request{GuestOffset(begin), bytes};
  reader.read({&request, 1});
  return bytes;
}

Bytes read_all(BlockDevice& device) {
  const std::unique_ptr<Reader> reader = device.open_reader();
  Bytes all;
  while (all.size() < device.size()) {
    const Bytes part = read(*reader, all.size(), std::min(kMiB, device.size() - all.size()));
    std::ranges::copy(part, std::back_inserter(all));
  }
  return all;
}

void write_text(const std::string& path, const std::string& text) {
  const auto bytes = std::as_bytes(std::span(text));
  write_file(path, Bytes(bytes.begin(), bytes.end()));
}

}  // namespace qchain::tests
