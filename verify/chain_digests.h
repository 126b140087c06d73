#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "verify/manifest.h"

namespace qchain {

/// The digest of every block of the disk that a chain describes, from its manifests alone: the one of the
/// topmost layer that holds the block; zeros where no layer does, or where a layer's end was passed on the
/// way down. Streamed in the order of the disk: memory for one record a layer.
class ChainDigests {
 public:
  /// `manifests` from the top; not empty, of one algorithm. Throws Error as ManifestReader does.
  explicit ChainDigests(const std::vector<std::string>& manifests);

  const ManifestHeader& top() const noexcept { return readers_.front()->header(); }

  /// Digests of neighbouring blocks.
  struct Run {
    std::uint64_t count = 0;
    const Digest* digests = nullptr;  ///< nullptr: zeros. Valid until the next call.
  };
  /// What blocks [first, first + at most) have, for a beginning of them that is never empty. `first` only
  /// ever grows.
  Run next(std::uint64_t first, std::uint64_t at_most);

  /// Adds blocks [first, first + count) to `disk`. The last one has the length that `end`, the end of the
  /// disk in bytes, leaves it.
  void add_to(DiskDigest& disk, std::uint64_t first, std::uint64_t count, std::uint64_t end);

  /// Reads all manifests to their ends: only now are the digests that were given proven to be what was
  /// written. Throws Error (BadManifest).
  void finish();

 private:
  struct Source {
    ManifestReader reader;
    ManifestRecord record;
    bool ended = false;

    explicit Source(const std::string& path) : reader(path) {}
    const ManifestHeader& header() const { return reader.header(); }
    void advance_to(std::uint64_t block);
  };
  std::vector<std::unique_ptr<Source>> readers_;
};

}  // namespace qchain
