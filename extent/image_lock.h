// QEMU's image locks: byte-range locks that coordinate the programs which have an image or a disk open. QEMU
// takes them on files of every format, and on block devices.
#pragma once

#include "extent/file.h"

namespace qchain {

/// How a file is shared with programs that have it open.
enum class Sharing {
  Read,   ///< As QEMU opens an image read-only: no other program may write to it, now or later.
  Force,  ///< As qemu-img -U: a writer is tolerated; what is read may be inconsistent.
  Write,  ///< As QEMU opens an image to write: only programs that tolerate a writer may have it open.
};

/// Takes QEMU's image locks on `file`, held as long as it is open. Throws Error (Io) if another program's
/// locks conflict. Does nothing on a file system that does not support locks.
void lock_image(const File& file, Sharing sharing);

}  // namespace qchain
