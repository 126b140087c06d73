#include "cli/raw_output.h"

namespace qchain {

void RawOutput::publish() {
  try {
    slot_.prepare();
    publication_.publish();
  } catch (...) {
    if (!publication_.is_published()) slot_.withdraw();
    throw;
  }
  slot_.settle();
}

}  // namespace qchain
