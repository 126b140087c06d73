// What exists at an output path, before anything is written to it.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "extent/file.h"

namespace qchain {

/// What a path resolves to.
enum class DestinationKind {
  Nothing,       ///< It does not exist.
  RegularFile,   ///< Directly, or through a symbolic link.
  BlockDevice,   ///< Likewise.
  DanglingLink,  ///< A symbolic link to something that does not exist.
  Other,         ///< A directory, a FIFO, a socket or a character device.
};

struct Destination {
  DestinationKind kind = DestinationKind::Nothing;
  /// With symbolic links resolved: what is to be opened or replaced. The path as given if nothing exists.
  std::string path;
  FileIdentity identity;  ///< Of what exists.
  dev_t device = 0;       ///< Of a block device: which one.
  const char* noun = "";  ///< "a directory", "a FIFO", ...: for messages.
};

/// Finds out what `path` is; follows symbolic links. Throws Error (Io) if that fails.
Destination resolve_destination(const std::string& path);

/// The storage behind a file or a block device: the devices and files that it is built on (loop devices,
/// device-mapper, partitions), as far as sysfs shows them.
class StorageStack {
 public:
  /// The stack of an open file or block device.
  explicit StorageStack(const File& file);
  /// Whether two stacks have a device or a file in common.
  bool overlaps(const StorageStack& other) const;

 private:
  void add_device(dev_t device);

  std::vector<dev_t> devices_;
  std::vector<FileIdentity> files_;
};

}  // namespace qchain
