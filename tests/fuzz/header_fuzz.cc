// The decoders of the header, its extensions, and the identity of a layer take any bytes: they throw Error,
// or what they decoded can be encoded and decoded again without a change.

#include <algorithm>
#include <string>

#include "extent/error.h"
#include "qcow2/bitmap.h"
#include "qcow2/header.h"
#include "qcow2/identity.h"
#include "tests/fuzz/require.h"

using namespace qchain;

namespace {

void try_identity(const std::string& json) {
  Identity identity;
  try {
    identity = decode_identity(json, "fuzz");
  } catch (const Error&) {
    return;
  }
  (void)link_mismatch(identity, true, identity);
  std::string encoded;
  try {
    encoded = encode_identity(identity);
  } catch (const Error&) {
    return;  // escaped again, it exceeds 1 KiB
  }
  require(decode_identity(encoded, "fuzz") == identity);
}

void try_header(std::span<const std::byte> bytes) {
  const std::uint64_t file_size = std::uint64_t{1} << 40;
  Header header;
  try {
    header = decode_header(bytes.first(std::min(bytes.size(), header_bytes(bytes))), file_size, "fuzz");
  } catch (const Error&) {
    return;
  }
  (void)header.features();
  (void)header.unsupported();
  (void)bitmap_directory(header);
  if (header.identity) try_identity(*header.identity);
  if (header.version != 3) return;  // only version 3 is written
  std::vector<std::byte> encoded;
  try {
    encoded = encode_header(header);
  } catch (const Error&) {
    return;  // padded again, it exceeds a cluster
  }
  require(decode_header(encoded, file_size, "fuzz") == header);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size > 0 && data[0] == '{') {
    try_identity({reinterpret_cast<const char*>(data), size});
  } else {
    try_header(std::as_bytes(std::span(data, size)));
  }
  return 0;
}
