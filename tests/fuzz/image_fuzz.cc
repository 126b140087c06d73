// A whole image: opened as the top of a chain, listed, mapped, read. Whatever the bytes, the answer is an
// Error or a disk, and what the map calls a range is what the ranges say together.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "extent/error.h"
#include "qcow2/chain.h"

using namespace qchain;

namespace {

constexpr std::uint64_t kMaxWalk = std::uint64_t{1} << 40;  // of the disk; it may claim more
constexpr std::size_t kMaxAnswers = 64;

// A file of its own in a folder of its own, so that no backing name leads anywhere.
const std::string& scratch() {
  static const std::string path = [] {
    std::string folder = (std::filesystem::temp_directory_path() / "image_fuzz_XXXXXX").string();
    if (mkdtemp(folder.data()) == nullptr) std::abort();
    return folder + "/image.qcow2";
  }();
  return path;
}

void fill(const std::uint8_t* data, std::size_t size) {
  const int descriptor = open(scratch().c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  const File file(descriptor, scratch());
  file.write(HostOffset(0), std::as_bytes(std::span(data, size)));
}

void walk(Chain& chain) {
  const std::unique_ptr<Reader> reader = chain.open_reader();
  std::vector<std::byte> bytes(std::size_t{64} << 10);
  GuestOffset at(0);
  const GuestOffset end(std::min(chain.size(), kMaxWalk));
  for (std::size_t i = 0; at < end && i < kMaxAnswers; ++i) {
    const std::vector<Mapping> mappings = chain.map({at, end});
    for (const Mapping& mapping : mappings) {
      if (mapping.range.begin != at || mapping.range.empty()) std::abort();
      at = mapping.range.end;
    }
    const std::uint64_t length = std::min<std::uint64_t>(bytes.size(), mappings.front().range.length());
    const ReadRequest request{mappings.front().range.begin, std::span(bytes).first(length)};
    reader->read(std::span(&request, 1));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fill(data, size);
  const Survey survey = qchain::survey(scratch(), ImageFormat::Qcow2, {});
  try {
    for (const Layer& layer : survey.layers) (void)usage_of(layer);
  } catch (const Error&) {
  }
  try {
    walk(*Chain::open(scratch(), ImageFormat::Qcow2, {}));
  } catch (const Error&) {
  }
  return 0;
}
