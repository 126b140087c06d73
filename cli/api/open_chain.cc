#include "cli/api/open_chain.h"

#include <fmt/format.h>

#include "qcow2/format.h"
#include "verify/drill.h"

namespace qchain {

namespace {

std::unique_ptr<Chain> open(const std::string& path, ImageFormat format, const OpenOptions& options,
                            Remedy if_not_qcow2) {
  try {
    return Chain::open(path, format, options);
  } catch (const NotQcow2& error) {
    throw Error(error.outcome(), error.what(), if_not_qcow2);
  }
}

}  // namespace

void warn_about(const Chain& chain, const ActiveRun& run) {
  for (const Layer& layer : chain.layers()) {
    if (layer.image() != nullptr && layer.image()->header().has_incompatible(kIncompatibleCorrupt)) {
      run.warn(
          fmt::format("{}: is marked as corrupt: QEMU found damage in its metadata; look at it with "
                      "qemu-img check",
                      layer.path()));
    }
  }
  for (const Survey::Problem& problem : chain.link_problems()) run.warn(problem.message);
}

std::unique_ptr<Chain> open_chain(const std::string& path, ImageFormat format, const OpenOptions& options,
                                  Links links, const ActiveRun& run, Remedy if_not_qcow2) {
  std::unique_ptr<Chain> chain = open(path, format, options, if_not_qcow2);
  if (links == Links::Require) require_resolved_links(*chain);
  warn_about(*chain, run);
  return chain;
}

}  // namespace qchain
