// QEMU's image locks: byte-range locks by which programs that have an image or a disk open tell each other
// what they do with it. QEMU takes them on files of every format, and on block devices.
#pragma once

#include "extent/file.h"

namespace qchain {

/// How a file is shared with programs that have it open.
enum class Sharing {
  Read,   ///< As QEMU opens an image read-only: nobody may be writing, nobody may begin to.
  Force,  ///< As qemu-img -U: a writer is tolerated; what is read may be inconsistent.
  Write,  ///< As QEMU opens an image to write: nobody else may have it open but those who tolerate a writer.
};

/// Takes QEMU's image locks on `file`, held as long as it is open. Throws Error (Io) where another
/// program's locks forbid it. A file system without locks is as good as one where nobody holds any.
void lock_image(const File& file, Sharing sharing);

}  // namespace qchain
