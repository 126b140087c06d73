// The snapshots and bitmaps of an image, as QEMU writes them, and invalid ones.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "qcow2/bitmap.h"
#include "qcow2/snapshot.h"
#include "tests/check/images.h"

namespace qchain::tests {
namespace {

class ListTest : public RandomTest {
 protected:
  std::string create(const std::string& size, const std::string& options = "cluster_size=4k") {
    const std::string path = folder_ / "image.qcow2";
    must({"qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, size});
    return path;
  }
  static Image open(const std::string& path) { return Image(File::open_to_read(path)); }
  static nlohmann::json info(const std::string& path) {
    return nlohmann::json::parse(must({"qemu-img", "info", "--output=json", path}));
  }

  Folder folder_;
};

TEST_F(ListTest, SnapshotsAsQemuListsThem) {
  const std::string path = create("8M");
  EXPECT_TRUE(read_snapshots(open(path), 10).snapshots.empty());
  for (const std::string name : {"one", "with \"quotes\"", "три"}) {
    must({"qemu-io", "-f", "qcow2", "-c", fmt::format("write {} 64k", random.below(100) * 4096), path});
    must({"qemu-img", "snapshot", "-c", name, path});
  }
  must({"qemu-img", "resize", "-q", "-f", "qcow2", path, "9M"});
  const SnapshotList list = read_snapshots(open(path), 10);
  EXPECT_EQ(list.problem, "");
  const nlohmann::json theirs = info(path)["snapshots"];
  ASSERT_EQ(list.snapshots.size(), theirs.size());
  for (std::size_t i = 0; i < theirs.size(); ++i) {
    const Snapshot& ours = list.snapshots[i];
    EXPECT_EQ(ours.id, theirs[i]["id"]);
    EXPECT_EQ(ours.name, theirs[i]["name"]);
    EXPECT_EQ(ours.seconds, theirs[i]["date-sec"]);
    EXPECT_EQ(ours.nanoseconds, theirs[i]["date-nsec"]);
    EXPECT_EQ(ours.vm_state_bytes, theirs[i]["vm-state-size"]);
    EXPECT_EQ(ours.disk_bytes, 8U << 20);
  }
  EXPECT_EQ(read_snapshots(open(path), 2).snapshots.size(), 2U);
}

TEST_F(ListTest, ASnapshotTableThatEndsEarly) {
  const std::string path = create("1M");
  must({"qemu-img", "snapshot", "-c", "one", path});
  DamagedImage image(path);
  const std::uint64_t table = MetadataMap(image).snapshot_table;
  image.put(table + 36, 0xFFFFFFF0, 4);  // extra data
  EXPECT_NE(read_snapshots(open(path), 10).problem, "");
  image.restore();
  image.put(60, 65536, 4);  // count
  const SnapshotList list = read_snapshots(open(path), 70000);
  EXPECT_NE(list.problem, "");
  EXPECT_EQ(list.snapshots.front().name, "one");
}

TEST_F(ListTest, NamesOfAnyLengthAreKeptInPart) {
  // A thousand names of 64 KiB would not fit in the memory that there is.
  const std::string path = create("1M");
  for (const char* name : {"one", "two"}) must({"qemu-img", "snapshot", "-c", name, path});
  must({"qemu-img", "bitmap", "-f", "qcow2", "--add", path, "b"});
  DamagedImage image(path);
  const std::uint64_t table = MetadataMap(image).snapshot_table,
                      directory = MetadataMap(image).bitmap_directory;
  image.truncate(1 << 20);
  image.put(table + 14, 60000, 2);      // takes the second snapshot in
  image.put(directory + 18, 60000, 2);  // and this one ends behind the directory
  image.put(60, 1, 4);
  const SnapshotList snapshots = read_snapshots(open(path), 10);
  EXPECT_EQ(snapshots.problem, "");
  EXPECT_EQ(snapshots.snapshots.at(0).name.size(), 1024U);
  EXPECT_TRUE(snapshots.snapshots.at(0).name.starts_with("one"));
  for (std::uint64_t at = 0; at < 4096; at += 8) {
    if (image.word(at) == directory) image.put(at - 8, align_up(24 + 60000, 8));
  }
  const BitmapList bitmaps = read_bitmaps(open(path), 10);
  EXPECT_EQ(bitmaps.problem, "");
  EXPECT_EQ(bitmaps.bitmaps.at(0).bitmap.name.size(), 1024U);
  EXPECT_EQ(bitmaps.bitmaps.at(0).unusable, "a name of more than 1023 bytes");
}

TEST_F(ListTest, BitmapsWithTheirDirtyBytes) {
  constexpr std::uint64_t kDisk = (3 << 20) + 1536;
  const std::string path = create(std::to_string(kDisk));
  EXPECT_EQ(read_bitmaps(open(path), 10).count, 0U);
  const std::vector<std::uint64_t> granularities{512, 4096, 65536, 1 << 20};
  for (const std::uint64_t granularity : granularities) {
    must({"qemu-img", "bitmap", "-f", "qcow2", "--add", "-g", std::to_string(granularity), path,
          fmt::format("b{}", granularity)});
  }
  std::vector<std::string> command{"qemu-io", "-f", "qcow2"};
  std::vector<std::pair<std::uint64_t, std::uint64_t>> written{{kDisk - 512, kDisk}};
  for (int i = 0; i < 10; ++i) {
    const std::uint64_t begin = random.below(kDisk / 512) * 512;
    written.emplace_back(begin, begin + random.between(1, (kDisk - begin) / 512) * 512 % (200 << 10));
    if (written.back().second <= begin) written.back().second = begin + 512;
  }
  for (const auto& [begin, end] : written) {
    command.insert(command.end(), {"-c", fmt::format("write {} {}", begin, end - begin)});
  }
  command.push_back(path);
  must(command);

  const BitmapList list = read_bitmaps(open(path), 10);
  EXPECT_EQ(list.problem, "");
  EXPECT_EQ(list.count, granularities.size());
  ASSERT_EQ(list.bitmaps.size(), granularities.size());
  for (std::size_t i = 0; i < granularities.size(); ++i) {
    const std::uint64_t granularity = granularities[i];
    std::set<std::uint64_t> granules;
    for (const auto& [begin, end] : written) {
      for (std::uint64_t at = begin / granularity; at * granularity < end; ++at) granules.insert(at);
    }
    std::uint64_t dirty = 0;
    for (const std::uint64_t at : granules) {
      dirty += std::min((at + 1) * granularity, kDisk) - at * granularity;
    }
    const BitmapInfo& ours = list.bitmaps[i];
    EXPECT_EQ(ours.bitmap.name, fmt::format("b{}", granularity));
    EXPECT_EQ(ours.bitmap.granularity(), granularity);
    EXPECT_TRUE(ours.bitmap.automatic());
    EXPECT_EQ(ours.unusable, "");
    EXPECT_EQ(ours.dirty_bytes, dirty) << granularity;
  }

  DamagedImage image(path);
  image.put(88, 0);
  EXPECT_NE(read_bitmaps(open(path), 10).bitmaps.at(0).unusable, "");
  image.restore();
  image.put(MetadataMap(image).bitmap_directory + 12, Bitmap::kInUse, 4);
  EXPECT_NE(read_bitmaps(open(path), 10).bitmaps.at(0).unusable, "");
  EXPECT_EQ(read_bitmaps(open(path), 10).bitmaps.at(1).unusable, "");
}

TEST_F(ListTest, BitmapsFarBeyondTheFile) {
  const std::string path = create("1M");
  must({"qemu-img", "bitmap", "-f", "qcow2", "--add", path, "b"});
  DamagedImage image(path);
  const std::uint64_t directory = MetadataMap(image).bitmap_directory;
  for (const std::uint64_t far : {std::uint64_t{1} << 40, std::uint64_t{1} << 63, ~std::uint64_t{0} << 12}) {
    image.put(directory, far);  // the table
    EXPECT_NE(read_bitmaps(open(path), 10).bitmaps.at(0).unusable, "");
    CheckReport report = check_by_us(path, Payloads::Doubtful);
    EXPECT_EQ(report.outcome(false), Outcome::Mismatch) << words_of(report);
    EXPECT_TRUE(report.problems.empty()) << words_of(report);
    image.restore();

    for (std::uint64_t at = 0; at < 4096; at += 8) {  // the directory, by the header's extension
      if (image.word(at) == directory) image.put(at, far);
    }
    const BitmapList list = read_bitmaps(open(path), 10);
    EXPECT_NE(list.problem, "");
    EXPECT_TRUE(list.bitmaps.empty());
    report = check_by_us(path, Payloads::Doubtful);
    EXPECT_EQ(report.outcome(false), Outcome::Mismatch) << words_of(report);
    EXPECT_TRUE(report.problems.empty()) << words_of(report);
    image.restore();
  }
}

}  // namespace
}  // namespace qchain::tests
