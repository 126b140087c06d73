#include "extent/publication.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string_view>
#include <utility>
#include <vector>

#include "extent/destination.h"
#include "extent/error.h"
#include "extent/image_lock.h"

namespace qchain {

namespace fs = std::filesystem;

namespace {

constexpr unsigned kMode = 0666;                   // less the umask
constexpr std::string_view kPartial = ".partial";  // ends the name of a temporary file
constexpr std::size_t kRandomDigits = 16;

Error exists(const std::string& path) {
  return Error(Outcome::Usage, fmt::format("{}: exists; choose another name", path), Remedy::ReplaceOutput);
}

// Follows symbolic links, and refuses what must not be replaced by a regular file.
Destination resolve(const std::string& path, Existing existing) {
  Destination found = resolve_destination(path);
  switch (found.kind) {
    case DestinationKind::Nothing:
      return found;
    case DestinationKind::RegularFile:
      if (existing == Existing::Refuse) throw exists(path);
      return found;
    case DestinationKind::BlockDevice:
    case DestinationKind::DanglingLink:
    case DestinationKind::Other:
      break;
  }
  throw Error(Outcome::Usage,
              fmt::format("{}: exists, and is {}: only a regular file can be replaced; name a file, or write "
                          "to standard output with \"-\"",
                          path, found.noun));
}

File open_directory_of(const std::string& path) {
  const std::string parent = fs::path(path).parent_path();
  const std::string directory = parent.empty() ? std::string(1, '.') : parent;
  const int descriptor = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) {
    throw system_error(fmt::format("{}: cannot open the directory {}", path, directory), errno);
  }
  return {descriptor, directory};
}

// A program that has the file open would go on with one that has no name any more.
void refuse_in_use(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
  if (descriptor < 0) {
    throw system_error(fmt::format("{}: cannot open it to check whether it is in use", path), errno);
  }
  lock_image(File(descriptor, path), Sharing::Write);
}

std::string random_digits() {
  std::array<unsigned char, kRandomDigits / 2> bytes{};
  if (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    throw system_error("cannot get random bytes", errno);
  }
  std::string text;
  for (const unsigned char byte : bytes) text += fmt::format("{:02x}", byte);
  return text;
}

std::string link_of(const File& file) { return fmt::format("/proc/self/fd/{}", file.descriptor()); }

std::string temporary_name_for(const std::string& output) {
  return fmt::format("{}.{}{}", output, random_digits(), kPartial);
}

// Whether `name` is a temporary file of `output`.
bool is_temporary_of(std::string_view name, std::string_view output) {
  if (name.size() != output.size() + 1 + kRandomDigits + kPartial.size()) return false;
  return name.starts_with(output) && name[output.size()] == '.' && name.ends_with(kPartial) &&
         name.substr(output.size() + 1, kRandomDigits).find_first_not_of("0123456789abcdef") ==
             std::string_view::npos;
}

bool is_link_unsupported(int error_number) {
  return error_number == EPERM || error_number == EOPNOTSUPP || error_number == ENOSYS ||
         error_number == EMLINK;
}

}  // namespace

NameLock::NameLock(const File& directory, const std::string& name, const std::string& path) {
  const FileIdentity identity = directory.identity();
  const std::string key = fmt::format("qchain-output-{:x}-{:x}-{:x}", identity.device, identity.inode,
                                      std::hash<std::string>()(name));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;  // an abstract name: it begins with NUL, and goes with its process
  key.copy(address.sun_path + 1, sizeof(address.sun_path) - 1);
  socket_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + key.size());
  if (socket_ < 0 || bind(socket_, reinterpret_cast<const sockaddr*>(&address), length) == 0) return;
  const bool held = errno == EADDRINUSE;
  release();
  if (held) throw Error(Outcome::Usage, fmt::format("{}: another process is writing to it", path));
}

NameLock::~NameLock() { release(); }

void NameLock::release() {
  if (socket_ >= 0) close(std::exchange(socket_, -1));
}

Publication::Publication(const std::string& path, Existing existing, Warn warn)
    : existing_(existing),
      warn_(std::move(warn)),
      directory_([&] {
        const Destination found = resolve(path, existing);
        path_ = found.path;
        name_ = fs::path(path_).filename().string();
        if (name_.empty()) throw Error(Outcome::Usage, fmt::format("{}: is not the name of a file", path));
        if (found.kind == DestinationKind::RegularFile) {
          refuse_in_use(path_);
          replaced_ = found.identity;
        }
        return open_directory_of(path_);
      }()),
      lock_(directory_, name_, path_),
      file_([&] {
        remove_leftovers();
        struct stat status {};
        const bool known =
            replaced_ && fstatat(directory_.descriptor(), name_.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0;
        // Not readable by more users than the file that it replaces.
        return create(known ? status.st_mode & 0777 : kMode);
      }()) {}

File Publication::create(unsigned mode) {
  const int unnamed =
      openat(directory_.descriptor(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, static_cast<mode_t>(mode));
  if (unnamed >= 0) {
    File file(unnamed, path_);
    if (can_link()) return file;
  }
  for (;;) {
    temporary_ = temporary_name_for(name_);
    const int named = openat(directory_.descriptor(), temporary_.c_str(),
                             O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, static_cast<mode_t>(mode));
    if (named < 0 && errno == EEXIST) continue;
    if (named < 0) {
      throw system_error(fmt::format("{}: cannot create {}/{}", path_, directory_.path(), temporary_), errno);
    }
    // So that no other writer removes it as a leftover. On a file system without locks, none removes any.
    flock(named, LOCK_EX | LOCK_NB);
    return {named, path_};
  }
}

// Whether a file without a name can be given one here: without /proc, or on some mounts, it cannot.
bool Publication::can_link() const {
  const int directory = directory_.descriptor();
  const int descriptor = openat(directory, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (descriptor < 0) return false;
  const File probe(descriptor, path_);
  const std::string name = temporary_name_for(name_);
  if (linkat(AT_FDCWD, link_of(probe).c_str(), directory, name.c_str(), AT_SYMLINK_FOLLOW) != 0) return false;
  unlinkat(directory, name.c_str(), 0);
  return true;
}

// Removes temporary files of writers that were killed. One that is locked is being written on another host;
// one with a second hard link is in use under that name.
void Publication::remove_leftovers() const {
  std::error_code error;
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory_.path(), error)) {
    const std::string name = entry.path().filename().string();
    if (is_temporary_of(name, name_)) names.push_back(name);
  }
  for (const std::string& name : names) {
    const int descriptor =
        openat(directory_.descriptor(), name.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (descriptor < 0) continue;
    const File left(descriptor, name);
    struct stat status {};
    const bool ours = fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode) && status.st_nlink == 1 &&
                      status.st_uid == geteuid() && flock(descriptor, LOCK_EX | LOCK_NB) == 0;
    if (ours && unlinkat(directory_.descriptor(), name.c_str(), 0) == 0) {
      warn(fmt::format("{}/{}: removed; it was left by an interrupted run", directory_.path(), name));
    } else {
      warn(
          fmt::format("{}/{}: may be a leftover of an interrupted run; remove it if no process is writing to "
                      "it",
                      directory_.path(), name));
    }
  }
}

Publication::~Publication() {
  if (published_ || temporary_.empty()) return;
  if (has_name(temporary_) && unlinkat(directory_.descriptor(), temporary_.c_str(), 0) != 0) {
    warn(fmt::format("{}/{}: cannot be removed ({}); remove it manually", directory_.path(), temporary_,
                     std::strerror(errno)));
  }
}

std::string Publication::current_path() const { return link_of(file_); }

void Publication::warn(const std::string& message) const noexcept {
  try {
    if (warn_) warn_(message);
  } catch (...) {  // the warning cannot be delivered
  }
}

// Only a warning: data may turn out to be zeros, and may be compressed.
void Publication::warn_if_short_of_space(std::uint64_t size, const ExtentSource& kinds) const {
  struct statvfs system {};
  if (fstatvfs(file_.descriptor(), &system) != 0) return;
  const std::uint64_t free = std::uint64_t{system.f_bavail} * system.f_frsize;
  if (size <= free) return;
  std::uint64_t data = 0;
  while (data <= free) {
    const std::optional<Extent> extent = kinds();
    if (!extent) return;
    if (extent->kind == Kind::Data) data += extent->range.length();
  }
  warn(fmt::format(
      "{}: there is more data than the {} bytes that are free on its file system; it will run out of space "
      "unless enough of the data is zeros or compresses well",
      path_, free));
}

bool Publication::has_name(const std::string& name) const {
  struct stat status {};
  return fstatat(directory_.descriptor(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0 &&
         file_.identity() == FileIdentity{status.st_dev, status.st_ino};
}

// Mode, owner, and extended attributes, which include access control lists.
void Publication::keep_attributes() const {
  struct stat old {};
  if (fstatat(directory_.descriptor(), name_.c_str(), &old, AT_SYMLINK_NOFOLLOW) != 0) return;
  const int fd = file_.descriptor();
  struct stat mine {};
  if (fstat(fd, &mine) == 0 && (old.st_uid != mine.st_uid || old.st_gid != mine.st_gid) &&
      fchown(fd, old.st_uid, old.st_gid) != 0) {
    warn(fmt::format("{}: its owner {}:{} could not be kept: {}", path_, old.st_uid, old.st_gid,
                     std::strerror(errno)));
  }
  if (fchmod(fd, old.st_mode & 07777) != 0) {
    warn(fmt::format("{}: its mode {:o} could not be kept: {}", path_, old.st_mode & 07777,
                     std::strerror(errno)));
  }
  const ssize_t length = llistxattr(path_.c_str(), nullptr, 0);
  if (length <= 0) return;
  std::vector<char> names(static_cast<std::size_t>(length));
  const ssize_t listed = llistxattr(path_.c_str(), names.data(), names.size());
  for (const char* name = names.data(); name < names.data() + listed; name += std::strlen(name) + 1) {
    std::vector<char> value(std::size_t{64} << 10);  // the kernel's limit
    const ssize_t size = lgetxattr(path_.c_str(), name, value.data(), value.size());
    if (size >= 0 && fsetxattr(fd, name, value.data(), static_cast<std::size_t>(size), 0) == 0) continue;
    warn(fmt::format("{}: its extended attribute {} could not be kept: {}", path_, name,
                     std::strerror(errno)));
  }
}

void Publication::refuse_taken() const {
  struct stat status {};
  const bool taken = fstatat(directory_.descriptor(), name_.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0;
  if (!taken && !replaced_) return;
  if (!replaced_) throw exists(path_);
  // The file to be replaced may be gone by now; but another file is not the one that the user meant.
  if (taken && *replaced_ != FileIdentity{status.st_dev, status.st_ino}) {
    throw Error(Outcome::Usage,
                fmt::format("{}: was replaced by another file in the meantime; nothing was changed", path_));
  }
}

void Publication::link_to(const std::string& name) const {
  const std::string from = temporary_.empty() ? link_of(file_) : temporary_;
  const int flags = temporary_.empty() ? AT_SYMLINK_FOLLOW : 0;
  const int at = temporary_.empty() ? AT_FDCWD : directory_.descriptor();
  if (linkat(at, from.c_str(), directory_.descriptor(), name.c_str(), flags) == 0) return;
  if (errno == EEXIST) throw exists(path_);
  throw system_error(fmt::format("{}: cannot link the new file to its name", path_), errno);
}

// Renames within the directory. If nothing may be replaced: with RENAME_NOREPLACE, else through a hard link.
// On a file system that supports neither, a file that is created between check and rename is lost.
void Publication::move_into_place(const std::string& from) {
  const int directory = directory_.descriptor();
  if (!has_name(from)) {
    throw Error(Outcome::Io, fmt::format("{}: {}/{} was removed or replaced by another program while it was "
                                         "written; nothing was published",
                                         path_, directory_.path(), from));
  }
  if (!replaced_) {
    if (renameat2(directory, from.c_str(), directory, name_.c_str(), RENAME_NOREPLACE) == 0) return;
    if (errno == EEXIST) throw exists(path_);
    if (errno != EINVAL && errno != ENOSYS) {
      throw system_error(fmt::format("{}: cannot be renamed from {}", path_, from), errno);
    }
    if (linkat(directory, from.c_str(), directory, name_.c_str(), 0) == 0) {
      if (unlinkat(directory, from.c_str(), 0) != 0) {
        warn(fmt::format("{}/{}: cannot be removed ({}); it is a second name of {}", directory_.path(), from,
                         std::strerror(errno), path_));
      }
      return;
    }
    if (errno == EEXIST) throw exists(path_);
    if (!is_link_unsupported(errno)) throw system_error(fmt::format("{}: cannot be linked", path_), errno);
    refuse_taken();
  }
  if (renameat(directory, from.c_str(), directory, name_.c_str()) != 0) {
    throw system_error(fmt::format("{}: cannot be renamed from {}", path_, from), errno);
  }
}

void Publication::give_name() {
  if (!temporary_.empty()) return move_into_place(temporary_);
  if (!replaced_) return link_to(name_);
  // link() cannot replace a file: link to a temporary name, then rename.
  const std::string temporary = temporary_name_for(name_);
  link_to(temporary);
  temporary_ = temporary;  // from here on the destructor removes it
  move_into_place(temporary);
}

void Publication::publish() {
  sync();
  refuse_taken();
  if (replaced_) {
    refuse_in_use(path_);
    keep_attributes();
    sync();
  }
  give_name();
  published_ = true;
  lock_.release();
  try {
    directory_.sync();
  } catch (const Error& error) {
    warn(fmt::format("{}: was published, but may not survive a power failure: {}", path_, error.what()));
  }
}

}  // namespace qchain
