#include "extent/publication.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "extent/error.h"

namespace qchain {

namespace {

constexpr mode_t kMode = 0666;  // less the umask

std::string partial_name(const std::string& path) { return path + ".partial"; }

void refuse_existing(const std::string& path) {
  struct stat status {};
  if (lstat(path.c_str(), &status) == 0) {
    throw Error(Outcome::Usage,
                fmt::format("{}: exists; choose another name, or replace it with --force", path));
  }
}

bool has_name(const File& file, const std::string& path) {
  struct stat status {};
  return stat(path.c_str(), &status) == 0 && file.identity() == FileIdentity{status.st_dev, status.st_ino};
}

// Opens and locks the partial file. A former owner may rename it between our open and our lock; then
// what we hold is a published file, which must not be touched, and we begin anew.
File create_partial(const std::string& path) {
  const std::string partial = partial_name(path);
  for (;;) {
    const int descriptor = open(partial.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, kMode);
    if (descriptor < 0) throw system_error(fmt::format("{}: cannot create", partial), errno);
    File file(descriptor, partial);
    if (flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
      throw Error(Outcome::Usage, fmt::format("{}: another process is writing {}", partial, path));
    }
    if (!has_name(file, partial)) continue;
    file.resize(0);
    return file;
  }
}

}  // namespace

Publication::Publication(const std::string& path, Existing existing)
    : path_(path), existing_(existing), file_([&] {
        if (existing == Existing::Refuse) refuse_existing(path);
        return create_partial(path);
      }()) {}

Publication::~Publication() {
  if (!published_) unlink(partial_name(path_).c_str());
}

void Publication::publish() {
  sync();
  const std::string partial = partial_name(path_);
  const unsigned flags = existing_ == Existing::Refuse ? RENAME_NOREPLACE : 0U;
  int result = renameat2(AT_FDCWD, partial.c_str(), AT_FDCWD, path_.c_str(), flags);
  if (result != 0 && flags != 0 && errno == EINVAL) {
    // This file system knows no RENAME_NOREPLACE.
    refuse_existing(path_);
    result = std::rename(partial.c_str(), path_.c_str());
  }
  if (result != 0 && errno == EEXIST) refuse_existing(path_);
  if (result != 0) throw system_error(fmt::format("{}: cannot be renamed to {}", partial, path_), errno);
  published_ = true;
  sync_directory_of(path_);
}

}  // namespace qchain
