#pragma once

#include "extent/file.h"

namespace qchain {

/// How a file is shared with programs that have it open.
enum class Sharing {
  Read,   ///< As QEMU opens an image read-only: nobody may be writing, nobody may begin to.
  Force,  ///< As qemu-img -U: a writer is tolerated; what is read may be inconsistent.
};

/// Takes QEMU's image locks on `file`, held as long as it is open. Throws Error (Io) where another
/// program's locks forbid it. A file system without locks is as good as one where nobody holds any.
void lock_image(const File& file, Sharing sharing);

}  // namespace qchain
