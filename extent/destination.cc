#include "extent/destination.h"

#include <fmt/format.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>

#include "extent/error.h"

namespace qchain {

namespace fs = std::filesystem;

namespace {

const char* noun_for(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISSOCK(mode)) return "a socket";
  if (S_ISCHR(mode)) return "a character device";
  if (S_ISBLK(mode)) return "a block device";
  return "a regular file";
}

std::string sysfs_name(dev_t device) {
  return fmt::format("/sys/dev/block/{}:{}", major(device), minor(device));
}

// "MAJOR:MINOR", as sysfs has it.
bool read_device_number(const fs::path& path, dev_t& device) {
  std::ifstream in(path);
  unsigned major_number = 0;
  unsigned minor_number = 0;
  char colon = 0;
  if (!(in >> major_number >> colon >> minor_number) || colon != ':') return false;
  device = makedev(major_number, minor_number);
  return true;
}

}  // namespace

Destination resolve_destination(const std::string& path) {
  Destination found;
  found.path = path;
  struct stat status {};
  if (lstat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) return found;
    throw system_error(fmt::format("{}: cannot stat", path), errno);
  }
  if (S_ISLNK(status.st_mode)) {
    std::error_code error;
    const fs::path real = fs::canonical(path, error);
    if (error || stat(real.c_str(), &status) != 0) {
      found.kind = DestinationKind::DanglingLink;
      found.noun = "a dangling symbolic link";
      return found;
    }
    found.path = real.string();
  }
  found.identity = {status.st_dev, status.st_ino};
  found.noun = noun_for(status.st_mode);
  if (S_ISBLK(status.st_mode)) found.device = status.st_rdev;
  found.kind = S_ISREG(status.st_mode)   ? DestinationKind::RegularFile
               : S_ISBLK(status.st_mode) ? DestinationKind::BlockDevice
                                         : DestinationKind::Other;
  return found;
}

StorageStack::StorageStack(const File& file) {
  struct stat status {};
  if (fstat(file.descriptor(), &status) != 0) return;
  if (!S_ISBLK(status.st_mode)) {
    files_.push_back({status.st_dev, status.st_ino});
    return;
  }
  // From the kernel, since the recorded name of the file behind a loop device may be outdated.
  loop_info64 loop{};
  if (ioctl(file.descriptor(), LOOP_GET_STATUS64, &loop) == 0)
    files_.push_back({loop.lo_device, loop.lo_inode});
  add_device(status.st_rdev);
}

void StorageStack::add_device(dev_t device) {
  if (std::ranges::find(devices_, device) != devices_.end()) return;
  devices_.push_back(device);
  const fs::path sysfs = sysfs_name(device);
  std::ifstream backing(sysfs / "loop/backing_file");
  std::string name;
  struct stat status {};
  if (std::getline(backing, name) && stat(name.c_str(), &status) == 0) {
    if (S_ISBLK(status.st_mode)) {
      add_device(status.st_rdev);
    } else {
      files_.push_back({status.st_dev, status.st_ino});
    }
  }
  std::error_code error;
  for (const fs::directory_entry& slave : fs::directory_iterator(sysfs / "slaves", error)) {
    dev_t lower = 0;
    if (read_device_number(slave.path() / "dev", lower)) add_device(lower);
  }
  // A partition is a part of its disk.
  dev_t disk = 0;
  if (fs::exists(sysfs / "partition", error) &&
      read_device_number(fs::canonical(sysfs, error).parent_path() / "dev", disk)) {
    add_device(disk);
  }
}

bool StorageStack::overlaps(const StorageStack& other) const {
  const auto shared = [](const auto& mine, const auto& theirs) {
    return std::ranges::any_of(
        mine, [&](const auto& item) { return std::ranges::find(theirs, item) != theirs.end(); });
  };
  return shared(devices_, other.devices_) || shared(files_, other.files_);
}

}  // namespace qchain
