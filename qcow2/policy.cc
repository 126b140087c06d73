#include "qcow2/policy.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "extent/error.h"
#include "extent/image_lock.h"

namespace qchain {

namespace fs = std::filesystem;

namespace {

std::string canonical_directory(const fs::path& directory) {
  std::error_code error;
  fs::path canonical = fs::canonical(directory.empty() ? fs::path(".") : directory, error);
  if (error)
    throw system_error(fmt::format("{}: cannot resolve the path", directory.string()), error.value());
  return canonical.string();
}

bool is_inside(const std::string& path, const std::string& root) {
  const std::string prefix = root.ends_with('/') ? root : root + '/';
  return path.starts_with(prefix);
}

// O_PATH: finds a file without opening it, so that no device is activated and no FIFO blocks.
File locate(const std::string& path) {
  const int descriptor = open(path.c_str(), O_PATH | O_CLOEXEC);
  if (descriptor < 0) throw system_error(fmt::format("{}: cannot open", path), errno);
  return {descriptor, path};
}

std::string link_of(const File& located) { return fmt::format("/proc/self/fd/{}", located.descriptor()); }

File reopen_to_read(const File& located) {
  if (!located.is_regular() && !located.is_block_device()) {
    throw Error(Outcome::Io, fmt::format("{}: not a regular file or a block device", located.path()));
  }
  const int descriptor = open(link_of(located).c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw system_error(fmt::format("{}: cannot open", located.path()), errno);
  return {descriptor, located.path()};
}

}  // namespace

Policy::Policy(const std::string& top_image, const OpenOptions& options) : options_(options) {
  roots_.push_back(canonical_directory(fs::path(top_image).parent_path()));
  for (const std::string& root : options.backing_roots) roots_.push_back(canonical_directory(root));
}

File Policy::open_located(const File& located) const {
  File file = reopen_to_read(located);
  lock_image(file, options_.force_share ? Sharing::Force : Sharing::Read);
  return file;
}

File Policy::open_top(const std::string& path) const { return open_located(locate(path)); }

File Policy::open_referred(const std::string& referrer, const std::string& name) const {
  if (has_protocol(name)) {
    throw Error(Outcome::Incomplete,
                fmt::format("{}: refers to \"{}\"; only plain local paths are followed", referrer, name));
  }
  const File located = locate(backing_path(referrer, name));
  // Checks the file that was found and not its name: links and ".." have been resolved by now.
  std::error_code error;
  const std::string found = fs::read_symlink(link_of(located), error).string();
  const bool allowed =
      !error && std::ranges::any_of(roots_, [&](const std::string& root) { return is_inside(found, root); });
  if (!allowed) {
    throw Error(Outcome::Incomplete,
                fmt::format("{}: refers to {}, which is outside the directory of the top image; if you trust "
                            "it, allow its directory {}",
                            referrer, found, fs::path(found).parent_path().string()),
                Remedy::AllowBackingRoot);
  }
  return open_located(located);
}

std::string backing_path(const std::string& referrer, const std::string& name) {
  return (fs::path(referrer).parent_path() / name).string();
}

bool has_protocol(const std::string& name) {
  const std::size_t colon = name.find(':');
  return colon != std::string::npos && name.find('/') > colon;
}

}  // namespace qchain
