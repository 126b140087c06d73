// What stands under a name that is about to be written: asked before the first byte.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "extent/file.h"

namespace qchain {

/// What a name leads to.
enum class DestinationKind {
  Nothing,       ///< Free.
  RegularFile,   ///< Directly, or through a link.
  BlockDevice,   ///< Likewise.
  DanglingLink,  ///< A symbolic link that leads nowhere.
  Other,         ///< A directory, a FIFO, a socket or a character device.
};

struct Destination {
  DestinationKind kind = DestinationKind::Nothing;
  /// Where links lead: what is to be opened, or replaced. The name itself where nothing is there.
  std::string path;
  FileIdentity identity;  ///< Of what is there.
  dev_t device = 0;       ///< Of a block device: which one.
  const char* noun = "";  ///< "a directory", "a FIFO", ...: for messages.
};

/// Looks at `path`; follows links. Throws Error (Io) where that cannot be told.
Destination look_at(const std::string& path);

/// What is stored where: a block device, with all devices and files that it stands on (loop devices,
/// device-mapper, partitions), as far as the kernel tells.
class StorageStack {
 public:
  /// The stack of an open file or block device.
  explicit StorageStack(const File& file);
  /// Whether two stacks have a device or a file in common.
  bool meets(const StorageStack& other) const;

 private:
  void add_device(dev_t device);

  std::vector<dev_t> devices_;
  std::vector<FileIdentity> files_;
};

}  // namespace qchain
