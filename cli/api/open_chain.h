#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cli/api/active_run.h"
#include "qcow2/chain.h"
#include "verify/restore_points.h"

namespace qchain {

/// What to do about layers that do not match their backing files.
enum class Links {
  Warn,     ///< The operation does not depend on it.
  Require,  ///< RestorePoints::require_resolved_links()
};

/// A chain and its restore points.
struct OpenedChain {
  explicit OpenedChain(std::unique_ptr<Chain> opened, std::vector<TrustedKey> trusted = {})
      : chain(std::move(opened)), points(*chain, std::move(trusted)) {}

  std::unique_ptr<Chain> chain;
  RestorePoints points;
};

/// Opens a chain. Warns about layers that QEMU has marked as corrupt, and about layers that do not match
/// their backing files. `if_not_qcow2`: the remedy if it is not a qcow2 image. `trusted`: keys, one of which
/// has to verify the signature of every manifest; empty: signatures are not required. Throws Error.
OpenedChain open_chain(const std::string& path, ImageFormat format, const OpenOptions& options, Links links,
                       const ActiveRun& run, Remedy if_not_qcow2 = Remedy::None,
                       std::vector<TrustedKey> trusted = {});
/// Opens as much of a qcow2 chain as possible; see Chain::open_for_salvage(). Warns likewise.
OpenedChain open_for_salvage(const std::string& path, const OpenOptions& options, const ActiveRun& run);

}  // namespace qchain
