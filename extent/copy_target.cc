#include "extent/copy_target.h"

#include <algorithm>
#include <array>
#include <cstdint>

namespace qchain {

void FileTarget::write(std::span<const WriteRequest> batch) {
  for (const WriteRequest& request : batch) {
    if (request.bytes.empty()) {
      write_zeros(request.range);
    } else if (is_stream()) {
      file_.append(request.bytes);
    } else {
      file_.write(HostOffset(request.range.begin.bytes()), request.bytes);
    }
  }
}

void FileTarget::write_zeros(const GuestRange& range) const {
  static constexpr std::array<std::byte, std::size_t{64} << 10> kZeros{};
  switch (content_) {
    case TargetContent::Zeros:
      return;
    case TargetContent::Unknown:
      return file_.write_zeros(HostOffset(range.begin.bytes()), range.length());
    case TargetContent::Stream:
      for (std::uint64_t rest = range.length(); rest > 0;) {
        const std::size_t step = std::min<std::uint64_t>(rest, kZeros.size());
        file_.append(std::span(kZeros).first(step));
        rest -= step;
      }
  }
}

}  // namespace qchain
