#include "cli/api/open_chain.h"

#include <fmt/format.h>

#include "qcow2/format.h"

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

void warn_about(const Chain& chain, const ActiveRun& run) {
  for (const Layer& layer : chain.layers()) {
    if (layer.image() != nullptr && layer.image()->header().has_incompatible(kIncompatibleCorrupt)) {
      run.warn(
          fmt::format("{}: marked as corrupt: QEMU found damage in its metadata; run "
                      "qemu-img check",
                      layer.path()));
    }
  }
  for (const Survey::Problem& problem : chain.link_problems()) run.warn(problem.message);
}

}  // namespace

OpenedChain open_chain(const std::string& path, ImageFormat format, const OpenOptions& options, Links links,
                       const ActiveRun& run, Remedy if_not_qcow2, std::vector<TrustedKey> trusted) {
  OpenedChain opened(open(path, format, options, if_not_qcow2), std::move(trusted));
  if (links == Links::Require) opened.points.require_resolved_links();
  warn_about(*opened.chain, run);
  return opened;
}

OpenedChain open_for_salvage(const std::string& path, const OpenOptions& options, const ActiveRun& run) {
  OpenedChain opened(Chain::open_for_salvage(path, ImageFormat::Qcow2, options));
  warn_about(*opened.chain, run);
  return opened;
}

}  // namespace qchain
