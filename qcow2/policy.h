#pragma once

#include <string>
#include <vector>

#include "extent/file.h"
#include "qcow2/open_options.h"

namespace qchain {

/// The maximum number of layers in a chain.
inline constexpr std::size_t kMaxChainDepth = 1000;

/// Which files may be opened because an image refers to them: backing and data files below the directory of
/// the top image, or below one of the roots that the user named. Images are untrusted: names that are not
/// plain local paths are refused.
class Policy {
 public:
  /// Throws Error (Io) if a directory does not exist.
  Policy(const std::string& top_image, const OpenOptions& options);

  /// Opens the image that the user named, a regular file or a block device, and takes QEMU's locks.
  File open_top(const std::string& path) const;

  /// Likewise the file `name` that the image opened as `referrer` refers to; a relative name is relative to
  /// the referrer's directory. Throws Error: Incomplete if the policy refuses it, Io if the file does not
  /// exist.
  File open_referred(const std::string& referrer, const std::string& name) const;

 private:
  File open_located(const File& located) const;

  OpenOptions options_;
  std::vector<std::string> roots_;  // canonical
};

/// The path of the file `name` that is recorded in the image opened as `referrer`.
std::string backing_path(const std::string& referrer, const std::string& name);

/// Whether `name` has a protocol prefix or is a json: description, as QEMU reads names.
bool has_protocol(const std::string& name);

}  // namespace qchain
