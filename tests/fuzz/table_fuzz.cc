// The readers of the snapshot table and of the bitmap directory: the input is the table, in an image that
// is right otherwise.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <span>
#include <vector>

#include "qcow2/bitmap.h"
#include "qcow2/format.h"
#include "qcow2/snapshot.h"
#include "tests/fuzz/require.h"

using namespace qchain;

namespace {

constexpr std::uint64_t kCluster = 512;
constexpr std::uint64_t kDisk = std::uint64_t{1} << 20;
constexpr std::size_t kMost = 1000;

// A header, and behind it the table, which is that of the snapshots and of the bitmaps.
Image image_of(std::uint16_t count, std::span<const std::byte> table) {
  Header header;
  header.cluster_bits = 9;
  header.virtual_size = kDisk;
  header.l1_entries = header.geometry().l1_entries();  // the table is not looked at: any place will do
  header.snapshot_count = count;
  header.snapshots = HostOffset(kCluster);
  header.autoclear_features = kAutoclearBitmaps;
  struct {
    Be32 count;
    Be32 reserved;
    Be64 bytes;
    Be64 at;
  } const extension{count, 0, table.size(), kCluster};
  const auto* const bytes = reinterpret_cast<const char*>(&extension);
  header.other_extensions.push_back({kExtensionBitmaps, {bytes, sizeof(extension)}});
  File file(memfd_create("table_fuzz", MFD_CLOEXEC), "table_fuzz");
  file.write(HostOffset(0), encode_header(header));
  file.write(HostOffset(kCluster), table);
  return Image(std::move(file));
}

template <class Entry>
void require_order(const std::vector<Entry>& entries, const Image& image) {
  HostOffset end(kCluster);
  for (const Entry& entry : entries) {
    require(entry.at >= end && entry.at.bytes() % 8 == 0);
    end = entry.at + entry.name.size();
  }
  require(end <= HostOffset(image.file_size()));
}

void try_snapshots(const Image& image, std::size_t count) {
  const SnapshotList list = read_snapshots(image, kMost);
  require_order(list.snapshots, image);
  require(list.snapshots.size() <= std::min(count, kMost));
  require(list.problem.empty() == (list.snapshots.size() == std::min(count, kMost)));
}

void try_bitmaps(const Image& image, std::size_t count) {
  const BitmapList list = read_bitmaps(image, kMost);
  std::vector<Bitmap> bitmaps;
  for (const BitmapInfo& info : list.bitmaps) {
    bitmaps.push_back(info.bitmap);
    require(info.dirty_bytes <= (info.unusable.empty() ? kDisk : 0));
  }
  require_order(bitmaps, image);
  require(list.bitmaps.size() <= std::min(count, kMost));
  require(list.bitmaps.size() == std::min(count, kMost) || !list.problem.empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const auto count = static_cast<std::uint16_t>(data[0] << 8U | data[1]);
  const Image image = image_of(count, std::as_bytes(std::span(data, size)).subspan(2));
  try_snapshots(image, count);
  try_bitmaps(image, count);
  return 0;
}
