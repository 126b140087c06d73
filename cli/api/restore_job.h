// A restore under way: what is written, where to, and what came of it.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "cli/api/active_run.h"
#include "cli/api/qchain.h"
#include "extent/copy_target.h"
#include "extent/destination.h"
#include "extent/raw_copy.h"
#include "qcow2/chain.h"
#include "verify/chain_proof.h"
#include "verify/read_back.h"
#include "verify/salvage.h"

namespace qchain {

/// What the copy is held against; without digests, nothing.
struct RestoreProof {
  std::unique_ptr<ChainDigests> digests;
  std::string root;  ///< Of the top's manifest, "ALGORITHM:HEX"; empty: unknown.
  bool root_follows =
      false;  ///< From the digests of all layers: nothing else binds the ones beneath to the top.
  /// The digest of the whole disk that the image's header records. Where the manifests do not tell all, what
  /// is written is hashed and compared with it. Empty: unknown, or not needed.
  std::string recorded;
};

struct RestoreJob {
  const RestoreRequest& request;
  const ActiveRun& run;
  Chain& chain;
  RestorePoints& points;
  RestoreProof proof;
  std::uint64_t unknown_bytes = 0;  ///< No manifest tells what they should be.
  bool recorded_fits = false;       ///< What was written has the recorded digest.
  Proof losses;                     ///< With --salvage and --no-verify: what is not there, or not right.
  CopyResult copied;
  std::string layer_id;          ///< Of the layer that was written; empty: none was.
  std::uint64_t rest_bytes = 0;  ///< Of a device or an export, behind the disk: left as they were.
  std::optional<Findings> read_back;

  /// Whether damage is written and listed, instead of refused.
  bool is_lenient() const { return request.no_verify || request.salvage; }
  bool is_verified() const {
    return losses.is_clean() && proof.digests && unknown_bytes == 0 && proof.root_follows;
  }
  Outcome read_back_outcome() const { return read_back ? read_back->outcome() : Outcome::Done; }
};

/// Where a restore writes to.
class RestoreTarget {
 public:
  virtual ~RestoreTarget() = default;
  /// Writes, and makes it durable. Throws Error.
  virtual void write(RestoreJob& job) = 0;
  /// Whether what fails leaves something behind; else it is a file that is not made then.
  virtual bool is_in_place() const { return true; }
};

/// Looks at the destination before anything is read. Throws Error where it must not be written to.
std::unique_ptr<RestoreTarget> open_restore_target(const RestoreRequest& request, const Chain& chain,
                                                   const ActiveRun& run);

}  // namespace qchain
