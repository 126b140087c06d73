#pragma once

#include <string>
#include <vector>

#include "extent/file.h"

namespace qchain {

/// The longest chain that is followed.
inline constexpr std::size_t kMaxChainDepth = 1000;

/// Which files an image may make us open: backing files beneath the directory of the top image, or
/// beneath one of the roots that the user named. An image is untrusted; its names are plain local paths
/// or they are refused.
class Policy {
 public:
  /// Throws Error (Io) where a directory is not there.
  Policy(const std::string& top_image, const std::vector<std::string>& backing_roots);

  /// Opens the backing file `name` of the image that was opened as `overlay`; a relative name counts
  /// from the overlay's directory. Throws Error: Incomplete where the policy refuses, Io where the file
  /// is not there.
  File open_backing(const std::string& overlay, const std::string& name) const;

 private:
  std::vector<std::string> roots_;  // canonical
};

/// Opens an image that the user named: a regular file or a block device.
File open_image_file(const std::string& path);

/// The path by which `name`, recorded in the image that was opened as `overlay`, is opened.
std::string backing_path(const std::string& overlay, const std::string& name);

/// Whether `name` has a protocol prefix or is a json: description, as QEMU reads names.
bool has_protocol(const std::string& name);

}  // namespace qchain
