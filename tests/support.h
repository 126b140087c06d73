// Shared by tests of several libraries: directories, commands, disks, and images that the code under test
// wrote.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "extent/block_device.h"
#include "extent/error.h"
#include "extent/file.h"
#include "extent/memory_device.h"
#include "qcow2/chain.h"
#include "qcow2/layer_writer.h"
#include "tests/random.h"

namespace qchain::tests {

using Bytes = std::vector<std::byte>;

/// A new folder, removed with all that is in it.
class Folder {
 public:
  Folder();
  ~Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  /// Names of what is in it, sorted.
  std::vector<std::string> names() const;

 private:
  std::filesystem::path path_;
};

struct Finished {
  int status = 0;      ///< As exit() had it; 128 and more after a signal.
  std::string output;  ///< Standard output and standard error, as they came.
};

/// Runs a program that is looked for in PATH.
Finished run(const std::vector<std::string>& command);
/// Runs a program that has to succeed; its failure is the test's.
std::string must(const std::vector<std::string>& command);

/// A new file, open to read and write.
File create_file(const std::string& path);
Bytes read_file(const std::string& path);
void write_file(const std::string& path, const Bytes& bytes);

/// The content of an image according to qemu-img.
Bytes content_by_qemu(const std::string& image);
/// The content of the device, read at once.
Bytes content_of(BlockDevice& device);
/// The complete result of map(), from repeated calls.
std::vector<Mapping> whole_map(const Chain& chain);
/// Where two contents differ first, in words; empty where they do not.
std::string first_difference(const Bytes& a, const Bytes& b);

/// The outcome of the Error that `action` throws; Done where it throws none.
Outcome outcome_of(const std::function<void()>& action);

/// Whether each extent begins where the last one ended, none is empty, and neighbours differ in kind.
testing::AssertionResult is_merged(const Extents& extents, const GuestRange& whole);

/// A disk, and the extents that it reports. Where it reports Zero, there are zeros; where it reports Data,
/// there may be zeros too.
struct Disk {
  Bytes bytes;
  Extents extents;
};
/// A random disk of `size` bytes whose extents begin and end at multiples of `grain`. Inherited bytes of an
/// overlay are any bytes; those of a bottom layer are zeros.
Disk random_disk(Random& random, std::uint64_t size, std::uint64_t grain, Position position);
/// What a layer with clusters of `unit` bytes stores of a disk, computed byte by byte. Extents end at the
/// disk's end, rounded up to sectors.
Extents stored_by_law(const Disk& disk, std::uint64_t unit, Position position);

/// Writes `device` as a complete image. `backing` is empty for none.
WrittenLayer write_image(BlockDevice& device, const std::string& path, const LayerOptions& options,
                         const std::string& backing = {}, const std::string& backing_format = "qcow2");

}  // namespace qchain::tests
