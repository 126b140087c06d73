#pragma once

#include <string>

#include "extent/publication.h"
#include "verify/manifest_slot.h"

namespace qchain {

/// A raw output file. It has no manifest; a manifest of another file under its name is refused or removed.
class RawOutput {
 public:
  /// Throws Error like Publication and ManifestSlot.
  RawOutput(const std::string& path, Existing existing, const Warn& warn)
      : publication_(path, existing, warn), slot_(publication_, existing, {}, warn) {
    publication_.bypass_cache();
  }

  const File& file() const noexcept { return publication_.file(); }
  /// A path by which it can be opened before it is published.
  std::string current_path() const { return publication_.current_path(); }
  /// See Publication.
  void warn_if_short_of_space(std::uint64_t size, const ExtentSource& kinds) const {
    publication_.warn_if_short_of_space(size, kinds);
  }
  void sync() { publication_.sync(); }
  /// Publishes the file.
  void publish() { slot_.publish(); }

 private:
  Publication publication_;
  ManifestSlot slot_;
};

}  // namespace qchain
