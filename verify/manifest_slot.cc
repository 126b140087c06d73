#include "verify/manifest_slot.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "extent/destination.h"
#include "extent/error.h"
#include "qcow2/image.h"
#include "verify/manifest.h"

namespace qchain {

namespace fs = std::filesystem;

namespace {

// The layer id in a manifest's header; nullopt: the file is not a manifest.
std::optional<std::string> layer_of(const std::string& manifest) {
  try {
    return ManifestReader(manifest).header().layer_id;
  } catch (const Error&) {
    return std::nullopt;
  }
}

// The layer id of an image; empty: it has none; nullopt: it cannot be read.
std::optional<std::string> id_of(const std::string& image) {
  try {
    const std::optional<Identity> identity = Image(File::open_to_read(image)).identity();
    return identity ? identity->id : std::string();
  } catch (const Error&) {
    return std::nullopt;
  }
}

bool rename_to(const std::string& from, const std::string& to, bool replace) {
  if (replace) return std::rename(from.c_str(), to.c_str()) == 0;
  if (renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return true;
  if (errno != EINVAL && errno != ENOSYS) return false;
  if (manifest_exists(to)) {
    errno = EEXIST;
    return false;
  }
  return std::rename(from.c_str(), to.c_str()) == 0;
}

}  // namespace

ManifestSlot::ManifestSlot(Publication& image, Existing existing, std::string id, Warn warn)
    : image_(image), inode_(image.file().identity()), id_(std::move(id)), warn_(std::move(warn)) {
  look_at_manifest(existing);
  remove_leftovers();
}

void ManifestSlot::look_at_manifest(Existing existing) {
  const std::string usual = manifest_path(image_.path());
  const Destination found = resolve_destination(usual);
  if (found.kind == DestinationKind::Nothing) return;
  const std::optional<std::string> layer =
      found.kind == DestinationKind::RegularFile && found.path == usual ? layer_of(usual) : std::nullopt;
  if (!layer) {
    throw Error(Outcome::Usage,
                fmt::format("{}: exists and is not a manifest; move it away, or choose another name than {}",
                            usual, image_.path()));
  }
  if (!image_.replaces() && existing == Existing::Refuse) {
    throw Error(Outcome::Usage,
                fmt::format("{}: exists, but {} does not; it may belong to an image that was lost or "
                            "moved; choose another name",
                            usual, image_.path()),
                Remedy::ReplaceOutput);
  }
  replaces_ = true;
  replaced_id_ = *layer;
}

// Removes manifests with an id that is not the image's.
void ManifestSlot::remove_leftovers() const {
  const fs::path path = image_.path();
  const std::string prefix = manifest_path(path.filename().string()) + '.';
  const std::optional<std::string> present = image_.replaces() ? id_of(image_.path()) : std::string();
  if (!present) return;
  std::error_code error;
  std::vector<fs::path> left;
  for (const fs::directory_entry& entry :
       fs::directory_iterator(path.parent_path().empty() ? fs::path(".") : path.parent_path(), error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(prefix) || !is_uuid(name.substr(prefix.size()))) continue;
    if (name.substr(prefix.size()) != *present) left.push_back(entry.path());
  }
  for (const fs::path& file : left) {
    struct stat status {};
    const std::string id = file.filename().string().substr(prefix.size());
    const bool ours = lstat(file.c_str(), &status) == 0 && S_ISREG(status.st_mode) && status.st_nlink == 1 &&
                      layer_of(file.string()) == id;
    if (ours && unlink(file.c_str()) == 0) {
      warn(fmt::format("{}: removed (left by an interrupted run)", file.string()));
    } else {
      warn(fmt::format("{}: probably left by an interrupted run; remove it if it is not needed",
                       file.string()));
    }
  }
}

std::string ManifestSlot::path() const { return manifest_path(image_.path(), id_); }

void ManifestSlot::publish() {
  try {
    prepare();
    image_.publish();
  } catch (...) {
    if (!image_.is_published()) withdraw();
    throw;
  }
  install_manifest();
}

void ManifestSlot::prepare() {
  if (!id_.empty() || replaced_id_.empty()) return;
  // The old image keeps its manifest until it is replaced.
  const std::string usual = manifest_path(image_.path());
  if (std::rename(usual.c_str(), manifest_path(image_.path(), replaced_id_).c_str()) != 0) {
    throw system_error(fmt::format("{}: cannot rename", usual), errno);
  }
  set_aside_ = true;
}

void ManifestSlot::withdraw() noexcept try {
  if (!id_.empty()) {
    unlink(path().c_str());
  } else if (set_aside_) {
    std::rename(manifest_path(image_.path(), replaced_id_).c_str(), manifest_path(image_.path()).c_str());
  }
} catch (...) {  // out of memory; readers find the manifest by its id
}

// The path of the replaced image's manifest; empty: there is none.
std::string ManifestSlot::stale_manifest() const {
  if (!replaces_ || (!id_.empty() && replaced_id_ == id_)) return {};
  if (!replaced_id_.empty()) return manifest_path(image_.path(), replaced_id_);
  return id_.empty() ? manifest_path(image_.path()) : std::string();  // else it was replaced
}

void ManifestSlot::install_manifest() noexcept try {
  const std::string usual = manifest_path(image_.path());
  // Another writer may have replaced the image and its manifest by now.
  struct stat status {};
  const bool is_ours =
      stat(image_.path().c_str(), &status) == 0 && inode_ == FileIdentity{status.st_dev, status.st_ino};
  if (!is_ours) return;
  // If IMAGE.manifest did not exist at first, do not replace one that somebody else has created since.
  if (!id_.empty() && !rename_to(path(), usual, replaces_)) {
    return warn(fmt::format("{}: cannot rename to {} ({}); qchain finds it under either name", path(), usual,
                            std::strerror(errno)));
  }
  const std::string stale = stale_manifest();
  if (!stale.empty() && unlink(stale.c_str()) != 0 && errno != ENOENT) {
    warn(fmt::format("{}: cannot remove ({}); it belongs to the image that was replaced", stale,
                     std::strerror(errno)));
  }
} catch (...) {  // out of memory; readers find the manifest by its id
}

void ManifestSlot::warn(const std::string& message) const noexcept {
  try {
    if (warn_) warn_(message);
  } catch (...) {  // the warning is lost
  }
}

}  // namespace qchain
