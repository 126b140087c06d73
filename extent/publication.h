#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "extent/extent.h"
#include "extent/file.h"

namespace qchain {

/// What to do if the output exists.
enum class Existing { Refuse, Replace };

/// Called with warnings, while the work goes on.
using Warn = std::function<void(const std::string& message)>;

/// Reserves an output among the qchain processes of this host as long as it lives, without a lock file.
/// Advisory: the second writer fails at the start instead of hours later. Correctness does not depend on it.
class NameLock {
 public:
  /// Throws Error (Usage) if another process has reserved `name` in `directory`.
  NameLock(const File& directory, const std::string& name, const std::string& path);
  ~NameLock();
  NameLock(const NameLock&) = delete;
  NameLock& operator=(const NameLock&) = delete;
  void release();

 private:
  int socket_ = -1;
};

/// A file that appears under its name atomically, and only when it is complete and durable.
///
/// It is always a new inode: without a name (O_TMPFILE) or, if the file system does not support that, named
/// `PATH.<16 hexadecimal digits>.partial`. publish() is the commit: a failure before it leaves the output
/// path unchanged and nothing else behind; after it, there are only warnings. A crash can leave a `.partial`
/// file; the next writer of the same output removes it. Only regular files are replaced: symbolic links are
/// followed, and the new file keeps mode, owner and extended attributes of the old one.
class Publication {
 public:
  /// Throws Error: Usage if `path` exists and must not be replaced, or if another process of this host is
  /// writing the same output; Io if the file to be replaced is in use, or the new one cannot be created.
  /// `warn` has to outlive it.
  Publication(const std::string& path, Existing existing, Warn warn = {});
  ~Publication();
  Publication(const Publication&) = delete;
  Publication& operator=(const Publication&) = delete;

  const File& file() const noexcept { return file_; }
  bool is_published() const noexcept { return published_; }
  /// Whether a file is going to be replaced.
  bool replaces() const noexcept { return replaced_.has_value(); }
  /// Warns if the file system may have too little space for a disk of `size` bytes; to be called before it is
  /// written. Reads `kinds` no further than necessary.
  void warn_if_short_of_space(std::uint64_t size, const ExtentSource& kinds) const;
  /// For large files: see File.
  void bypass_cache() { file_.bypass_cache(); }
  /// The path that it will have, with symbolic links resolved.
  const std::string& path() const noexcept { return path_; }
  /// A path by which the file can be opened before it is published.
  std::string current_path() const;

  /// Makes the content durable (fsync), but not its name.
  void sync() { file_.sync(); }
  /// Gives the file its name, after a sync(). Throws Error if it did not get it: Usage if the name has been
  /// taken meanwhile, or the file to be replaced is another one by now.
  void publish();

 private:
  File create(unsigned mode);
  bool can_link() const;
  void remove_leftovers() const;
  void keep_attributes() const;
  void give_name();
  void link_to(const std::string& name) const;
  void move_into_place(const std::string& from);
  void refuse_taken() const;
  bool has_name(const std::string& name) const;
  void warn(const std::string& message) const noexcept;

  std::string path_;
  std::string name_;  // in directory_
  Existing existing_;
  Warn warn_;
  std::optional<FileIdentity> replaced_;
  File directory_;
  NameLock lock_;
  std::string temporary_;  // in directory_; empty: the file has no name
  File file_;
  bool published_ = false;
};

}  // namespace qchain
