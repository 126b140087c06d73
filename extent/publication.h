#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "extent/extent.h"
#include "extent/file.h"

namespace qchain {

/// What to do where the output's name is taken.
enum class Existing { Refuse, Replace };

/// Told what is not as it should be while the work goes on.
using Warn = std::function<void(const std::string& message)>;

/// Holds a name against other writers of the same host, as long as it lives, without a file of its own. A
/// courtesy: who comes second is told at once, and not after hours. Nothing depends on it.
class NameLock {
 public:
  /// Throws Error (Usage) where another process holds `name` in `directory`.
  NameLock(const File& directory, const std::string& name, const std::string& path);
  ~NameLock();
  NameLock(const NameLock&) = delete;
  NameLock& operator=(const NameLock&) = delete;
  void release();

 private:
  int socket_ = -1;
};

/// A file that appears under its name only when it is complete and durable, in one step.
///
/// Its inode is always a fresh one: without any name (O_TMPFILE), or, where the file system knows no such
/// thing, under `PATH.<16 hexadecimal digits>.partial`. publish() is the commit: before it, whatever fails
/// leaves the name as it was and nothing else behind; after it, there are only warnings. A crash can leave a
/// `.partial` file; the next writer of the same output removes it. Nothing but a regular file is replaced: a
/// link is followed, and what replaces a file has its mode, owner and extended attributes.
class Publication {
 public:
  /// Throws Error: Usage where something stands under `path` that must not be replaced, or where another
  /// process of this host is writing the same output; Io where what is replaced is in use, or the file cannot
  /// be made. `warn` has to outlive it.
  Publication(const std::string& path, Existing existing, Warn warn = {});
  ~Publication();
  Publication(const Publication&) = delete;
  Publication& operator=(const Publication&) = delete;

  const File& file() const noexcept { return file_; }
  bool is_published() const noexcept { return published_; }
  /// Whether a file is going to be replaced.
  bool replaces() const noexcept { return replaced_.has_value(); }
  /// Warns where a disk of `size` bytes may find too little room in the file system; before it is written.
  /// `kinds` is read no further than it takes to tell.
  void warn_if_short_of_space(std::uint64_t size, const ExtentSource& kinds) const;
  /// For large files: see File.
  void bypass_cache() { file_.bypass_cache(); }
  /// The name that it will have; where links lead.
  const std::string& path() const noexcept { return path_; }
  /// A name by which the file can be opened before it has its own.
  std::string current_path() const;

  /// Makes the content durable (fsync), under no name yet.
  void sync() { file_.sync(); }
  /// Gives the file its name. Calls sync() first. Throws Error where the name was not given: Usage where it
  /// was taken, or what was to be replaced is another file by now.
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
  void tell(const std::string& message) const noexcept;

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
