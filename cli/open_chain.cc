#include "cli/open_chain.h"

#include <fmt/format.h>

#include "qcow2/format.h"

namespace qchain {

std::unique_ptr<Chain> open_chain(const std::string& path, ImageFormat format, const CommonOptions& options,
                                  Console& console) {
  std::unique_ptr<Chain> chain = Chain::open(path, format, options.open);
  for (const Layer& layer : chain->layers()) {
    if (layer.image() != nullptr && layer.image()->header().has_incompatible(kIncompatibleCorrupt)) {
      console.warn(
          fmt::format("{}: is marked as corrupt: QEMU found damage in its metadata; look at it with "
                      "qemu-img check",
                      layer.path()));
    }
  }
  return chain;
}

}  // namespace qchain
