#include "cli/open_chain.h"

#include <fmt/format.h>

#include "qcow2/format.h"
#include "verify/drill.h"

namespace qchain {

namespace {

std::unique_ptr<Chain> open(const std::string& path, ImageFormat format, const CommonOptions& options,
                            const std::string& format_option) {
  try {
    return Chain::open(path, format, options.open);
  } catch (const NotQcow2& error) {
    if (format_option.empty()) throw;
    throw Error(error.outcome(),
                fmt::format("{}; if it is a raw image, add {}", error.what(), format_option));
  }
}

}  // namespace

void warn_about(const Chain& chain, Console& console) {
  for (const Layer& layer : chain.layers()) {
    if (layer.image() != nullptr && layer.image()->header().has_incompatible(kIncompatibleCorrupt)) {
      console.warn(
          fmt::format("{}: is marked as corrupt: QEMU found damage in its metadata; look at it with "
                      "qemu-img check",
                      layer.path()));
    }
  }
  for (const Survey::Problem& problem : chain.link_problems()) console.warn(problem.message);
}

std::unique_ptr<Chain> open_chain(const std::string& path, ImageFormat format, const CommonOptions& options,
                                  Console& console, Links links, const std::string& format_option) {
  std::unique_ptr<Chain> chain = open(path, format, options, format_option);
  if (links == Links::Require) require_resolved_links(*chain);
  warn_about(*chain, console);
  return chain;
}

}  // namespace qchain
