#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "extent/publication.h"
#include "qcow2/chain.h"
#include "qcow2/layer_writer.h"
#include "verify/content_digest.h"

namespace qchain {

struct FlatLayerOptions {
  Existing existing = Existing::Refuse;
  std::vector<StageFactory> stages;              ///< What is done with the disk's data before it is written.
  Algorithm algorithm = Algorithm::Sha256;       ///< Of the manifest.
  std::optional<ContentDigest> expected_digest;  ///< That the disk must have; nullopt: any.
  unsigned workers = 1;
  Warn warn;  ///< Told what is not as it should be, after the commit too.
  std::function<void(std::uint64_t done)> progress = [](std::uint64_t) {};
};

struct FlatLayer {
  std::string id;
  std::optional<ContentDigest> digest;  ///< Of the disk.
  WrittenLayer written;
};

/// Writes `source`, the disk that a chain describes, as one full layer, with an identity and a manifest of
/// its own; it is at the checkpoint of the chain's top. Throws Error: Mismatch where what is read is not what
/// was recorded.
FlatLayer write_flat_layer(const Chain& chain, BlockDevice& source, const std::string& path,
                           const FlatLayerOptions& options);

}  // namespace qchain
