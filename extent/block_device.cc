#include "extent/block_device.h"

namespace qchain {

ExtentSource extents_of(BlockDevice& device, GuestRange range) {
  return
      [&device, rest = range, window = Extents{}, next = std::size_t{0}]() mutable -> std::optional<Extent> {
        if (next == window.size()) {
          if (rest.empty()) return std::nullopt;
          window = device.extents(rest);
          next = 0;
          rest.begin = window.back().range.end;
        }
        return window[next++];
      };
}

ExtentSource extents_of(BlockDevice& device) { return extents_of(device, guest_range(0, device.size())); }

}  // namespace qchain
