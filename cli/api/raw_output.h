#pragma once

#include <string>

#include "extent/publication.h"
#include "verify/manifest_slot.h"

namespace qchain {

/// A plain file that a disk is written to: it has no manifest, and none of another one's may lie beside it.
class RawOutput {
 public:
  /// Throws Error as Publication and ManifestSlot do.
  RawOutput(const std::string& path, Existing existing, const Warn& warn)
      : publication_(path, existing, warn), slot_(publication_, existing, {}, warn) {
    publication_.bypass_cache();
  }

  const File& file() const noexcept { return publication_.file(); }
  /// A name by which it can be opened before it has its own.
  std::string current_path() const { return publication_.current_path(); }
  /// See Publication.
  void warn_if_short_of_space(std::uint64_t size, const ExtentSource& kinds) const {
    publication_.warn_if_short_of_space(size, kinds);
  }
  void sync() { publication_.sync(); }
  /// The commit.
  void publish() { slot_.publish(); }

 private:
  Publication publication_;
  ManifestSlot slot_;
};

}  // namespace qchain
