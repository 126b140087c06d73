#pragma once

#include <string>
#include <vector>

#include "extent/file.h"
#include "qcow2/open_options.h"

namespace qchain {

/// The longest chain that is followed.
inline constexpr std::size_t kMaxChainDepth = 1000;

/// Which files an image may make us open: backing and data files beneath the directory of the top image, or
/// beneath one of the roots that the user named. An image is untrusted; its names are plain local paths
/// or they are refused.
class Policy {
 public:
  /// Throws Error (Io) where a directory is not there.
  Policy(const std::string& top_image, const OpenOptions& options);

  /// Opens the image that the user named, a regular file or a block device, and takes QEMU's locks.
  File open_top(const std::string& path) const;

  /// Likewise the file `name` that the image opened as `referrer` refers to; a relative name counts
  /// from the referrer's directory. Throws Error: Incomplete where the policy refuses, Io where the file
  /// is not there.
  File open_referred(const std::string& referrer, const std::string& name) const;

 private:
  File open_located(const File& located) const;

  OpenOptions options_;
  std::vector<std::string> roots_;  // canonical
};

/// The path by which `name`, recorded in the image that was opened as `referrer`, is opened.
std::string backing_path(const std::string& referrer, const std::string& name);

/// Whether `name` has a protocol prefix or is a json: description, as QEMU reads names.
bool has_protocol(const std::string& name);

}  // namespace qchain
