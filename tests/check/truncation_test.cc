// A truncated file: any data that is lost is reported, also where qemu-img check reports nothing.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/check/images.h"

namespace qchain::tests {
namespace {

class TruncationTest : public RandomTest {
 protected:
  // What QEMU reads; nothing where it cannot.
  Bytes content(const std::string& path) {
    const std::string raw = folder_ / "content.raw";
    const Finished done = run({"qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-t", "unsafe", path, raw});
    return done.status == 0 ? read_file(raw) : Bytes();
  }

  Folder folder_;
};

TEST_F(TruncationTest, LossesAreFoundAtAnyLength) {
  int lost = 0;
  int missed_by_qemu = 0;
  for (int i = 0; i < rounds(10); ++i) {
    const Shape shape = random_shape(random);
    const std::string path = folder_ / fmt::format("{}.qcow2", i);
    make_random_image(random, shape, path);
    if (verdict_of(check_by_us(path, Payloads::All)) != QemuVerdict::Clean) continue;
    DamagedImage image(path);
    const Bytes whole = content(path);
    for (int k = 0; k < 14; ++k) {
      // Often near the end, where QEMU reports nothing.
      const std::uint64_t most =
          random.chance(50) ? std::min<std::uint64_t>(image.size() - 1, 3000) : image.size() - 1;
      image.truncate(image.size() - random.between(1, most));
      const CheckReport report = check_by_us(path);
      const QemuVerdict ours = verdict_of(report);
      if (content(path) != whole) {
        ++lost;
        const QemuVerdict qemu = check_by_qemu(path);
        if (qemu == QemuVerdict::Clean || qemu == QemuVerdict::Leaks) ++missed_by_qemu;
        EXPECT_TRUE(ours == QemuVerdict::Corrupt || ours == QemuVerdict::CannotOpen)
            << shape.options() << ", cut to " << std::filesystem::file_size(path) << " of " << image.size()
            << " bytes: QEMU says " << to_string(qemu) << "\n"
            << words_of(report);
      }
      image.restore();
    }
    std::filesystem::remove(path);
  }
  std::printf("%d cuts with losses, of which qemu-img check misses %d\n", lost, missed_by_qemu);
}

}  // namespace
}  // namespace qchain::tests
