// qchain::seal(): writes the manifests that the layers of a chain lack, from what they hold now. See qchain.h
// for what holds for every verb.
//
//     qchain::SealRequest request;
//     request.image = "/backup/vda.1.qcow2";
//     for (const qchain::SealedLayer& layer : qchain::seal(request).layers) log(layer.file + " " +
//     layer.root);
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "cli/api/run.h"
#include "extent/export.h"
#include "qcow2/open_options.h"
#include "verify/sealed.h"

namespace qchain {

/// One layer, which has a manifest now.
struct SealedLayer {
  std::size_t index = 0;  ///< 0: the top.
  std::string file;
  Sealed sealed = Sealed::Already;
  std::string root;      ///< The digest of the disk; empty: unknown.
  std::string accepted;  ///< The recorded digest, where other content was sealed on somebody's word.
  bool is_signed = false;
};

struct SealRequest {
  std::string image;  ///< Path of the topmost layer.
  OpenOptions open;
  std::string sign_key;  ///< Path of an Ed25519 key (PEM); empty: manifests are not signed.
  /// Paths of public keys: manifests that are signed with one of these keep their signature.
  std::vector<std::string> trust_keys;
  /// Seal also what is not what was recorded, on the operator's word; the manifest says so.
  bool accept_changed = false;
};

struct SealResult {
  std::vector<SealedLayer> layers;  ///< From the bottom up.
};

/// All manifests get their names together, when each was made and compared with what is recorded. Throws
/// Error: BadManifest where a manifest is bad or another layer's; Mismatch (Remedy::AcceptChanged) where the
/// disk is not what was recorded; Usage where a signature would be lost. Nothing is changed then.
QCHAIN_API SealResult seal(const SealRequest& request, const Run& run = {});

}  // namespace qchain
