// A whole image: opened as the top of a chain, checked, listed, mapped, read. For any bytes, the result is an
// Error or a disk; the map has no gaps, and an image that passes the check can be read.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "extent/error.h"
#include "extent/zero.h"
#include "qcow2/bitmap.h"
#include "qcow2/chain.h"
#include "qcow2/snapshot.h"
#include "tests/fuzz/require.h"
#include "verify/check.h"

using namespace qchain;

namespace {

constexpr std::uint64_t kMaxWalk = std::uint64_t{1} << 40;  // of the disk; it may claim more
constexpr std::size_t kMaxAnswers = 64;
constexpr std::size_t kMaxListed = 1000;  // as chaininfo has it
constexpr std::size_t kNeighbour = std::size_t{20} << 10;

void put(const std::string& path, std::span<const std::byte> bytes) {
  const File file(open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), path);
  file.write(HostOffset(0), bytes);
}

// A folder of its own, with an image that is empty yet, a raw backing file and an external data file. No
// other name leads anywhere.
class Scratch {
 public:
  Scratch() {
    if (mkdtemp(folder_.data()) == nullptr) std::abort();
    std::vector<std::byte> bytes(kNeighbour);
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i % 251 + 1);
    put(folder_ + "/base.raw", bytes);
    put(folder_ + "/data.raw", bytes);
  }
  ~Scratch() { std::filesystem::remove_all(folder_); }
  std::string image() const { return folder_ + "/image.qcow2"; }

 private:
  std::string folder_ = (std::filesystem::temp_directory_path() / "image_fuzz_XXXXXX").string();
};

Outcome check(const Survey& survey) {
  const CheckReport report = check_chain(survey, Payloads::All);
  for (const LayerCheck& layer : report.layers) {
    for (const Finding& finding : layer.findings.kept()) (void)describe(finding);
  }
  return report.outcome(false);
}

void list(const Image& image) {
  (void)read_snapshots(image, kMaxListed);
  for (const BitmapInfo& info : read_bitmaps(image, kMaxListed).bitmaps) {
    require(info.dirty_bytes <= image.header().virtual_size);
  }
}

void walk(Chain& chain) {
  const std::unique_ptr<Reader> reader = chain.open_reader();
  std::vector<std::byte> buffer(std::size_t{64} << 10);
  GuestOffset at(0);
  const GuestOffset end(std::min(chain.size(), kMaxWalk));
  for (std::size_t i = 0; at < end && i < kMaxAnswers; ++i) {
    const std::vector<Mapping> mappings = chain.map({at, end});
    for (const Mapping& mapping : mappings) {
      require(mapping.range.begin == at && !mapping.range.empty());
      at = mapping.range.end;
    }
    const Mapping& first = mappings.front();
    const std::span<std::byte> bytes =
        std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), first.range.length()));
    const ReadRequest request{first.range.begin, bytes};
    reader->read(std::span(&request, 1));
    require(first.kind == Kind::Data || is_zero(bytes));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Scratch scratch;
  put(scratch.image(), std::as_bytes(std::span(data, size)));
  OpenOptions options;
  options.allow_data_file = size % 2 == 0;
  const Survey survey = qchain::survey(scratch.image(), ImageFormat::Qcow2, options);
  const bool sound = check(survey) == Outcome::Done;
  try {
    for (const Layer& layer : survey.layers) {
      if (layer.image() != nullptr) list(*layer.image());
      (void)usage_of(layer);
    }
    walk(*Chain::open(scratch.image(), ImageFormat::Qcow2, options));
  } catch (const Error&) {
    require(!sound);
  }
  return 0;
}
