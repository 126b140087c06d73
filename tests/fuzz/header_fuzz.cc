// The header decoder takes any bytes: it throws Error, or what it decoded can be encoded and decoded
// again without a change.

#include <cstdlib>

#include "extent/error.h"
#include "qcow2/header.h"

using namespace qchain;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
  const std::uint64_t file_size = std::uint64_t{1} << 40;
  Header header;
  try {
    header = decode_header(bytes.first(std::min(size, header_bytes(bytes))), file_size, "fuzz");
  } catch (const Error&) {
    return 0;
  }
  (void)header.features();
  (void)header.unsupported();
  if (header.version != 3) return 0;  // only version 3 is written
  std::vector<std::byte> encoded;
  try {
    encoded = encode_header(header);
  } catch (const Error&) {
    return 0;  // padded anew, it no longer fits in a cluster
  }
  if (!(decode_header(encoded, file_size, "fuzz") == header)) std::abort();
  return 0;
}
