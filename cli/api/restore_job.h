// A restore in progress: source, target and result.
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

/// What the copy is verified with; without digests, nothing.
struct RestoreProof {
  std::unique_ptr<ChainDigests> digests;
  std::optional<ContentDigest> root;  ///< From the top layer's manifest.
  bool root_follows = false;          ///< The root matches the digests of all layers.
  /// The digest of the whole disk from the image's header. If the manifests are incomplete, the written data
  /// is hashed and compared with it. Empty: unknown, or not needed.
  std::optional<ContentDigest> recorded;
};

struct RestoreJob {
  const RestoreRequest& request;
  const ActiveRun& run;
  Chain& chain;
  RestorePoints& points;
  RestoreProof proof;
  std::uint64_t unknown_bytes = 0;  ///< Not covered by any manifest.
  bool recorded_matches = false;    ///< The written data has the recorded digest.
  Proof losses;                     ///< With salvage and no_verify: what is missing or wrong.
  CopyResult copied;
  std::string layer_id;          ///< Of the layer that was written; empty: none was.
  std::uint64_t rest_bytes = 0;  ///< Of a device or an export, after the end of the disk: unchanged.
  std::optional<Findings> read_back;

  /// Whether damaged data is written and listed instead of refused.
  bool is_lenient() const { return request.no_verify || request.salvage; }
  bool is_verified() const {
    return losses.is_clean() && proof.digests && unknown_bytes == 0 && proof.root_follows;
  }
  Outcome read_back_outcome() const { return read_back ? read_back->outcome() : Outcome::Done; }
};

/// The destination of a restore.
class RestoreTarget {
 public:
  virtual ~RestoreTarget() = default;
  /// Writes the data and makes it durable. Throws Error.
  virtual void write(RestoreJob& job) = 0;
  /// Whether a failure leaves a partial result; else no file is created.
  virtual bool is_in_place() const { return true; }
};

/// Checks the destination before anything is read. Throws Error if it must not be written to.
std::unique_ptr<RestoreTarget> open_restore_target(const RestoreRequest& request, const Chain& chain,
                                                   const ActiveRun& run);

}  // namespace qchain
