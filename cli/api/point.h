// Which point in time a disk is at, and whether that is the one that was asked for. A signature says who
// wrote a layer; only these say which layer it is.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "extent/export.h"

namespace qchain {

/// A point in time of a disk, as its manifest records it; else as the header of its layer does. Empty:
/// unknown.
struct PointInTime {
  bool is_from_manifest = false;  ///< Of the layer, and signed by a trusted key if that was asked for.
  std::string layer_id;
  std::string root;  ///< The digest of the disk.
  std::string checkpoint;
  std::string time;         ///< ISO 8601, UTC.
  std::string origin;       ///< "pull", "seal" or "restore"; empty: there is no manifest.
  std::string sealed_time;  ///< With "seal": when the digests were made.
  std::string file;         ///< Name of the layer's file at that time, without its directory.
  std::string disk;         ///< DOMAIN/TARGET, else the name of the export.
};

/// What a point has to be.
struct PointDemand {
  std::vector<std::string>
      expect;  ///< "root=ALGORITHM:HEX", "layer=UUID" or "checkpoint=NAME": all of these.
  std::optional<std::chrono::seconds> not_older_than;
  /// Path of a file with the newest point of each disk that was ever seen, kept where who can write to the
  /// backups cannot: older points are refused. Written when a point was accepted; created if it is missing.
  std::string last_seen;

  bool is_empty() const { return expect.empty() && !not_older_than && last_seen.empty(); }
};

}  // namespace qchain
