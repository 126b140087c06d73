#pragma once

#include <string>

#include "extent/file.h"

namespace qchain {

/// What to do where the output's name is taken.
enum class Existing { Refuse, Replace };

/// A file that appears under its name only when it is complete and durable.
///
/// It is written as `PATH.partial`, locked against a second writer, and renamed by publish(). Without
/// publish(), also after an exception, nothing is left. After a crash a PATH.partial can remain; the
/// next writer of the same output takes it over.
class Publication {
 public:
  /// Throws Error: Usage where `path` exists and `existing` refuses, or where another process is
  /// writing the same output; Io where the file cannot be made.
  Publication(const std::string& path, Existing existing);
  ~Publication();
  Publication(const Publication&) = delete;
  Publication& operator=(const Publication&) = delete;

  const File& file() const noexcept { return file_; }
  bool is_published() const noexcept { return published_; }
  /// For large files: see File.
  void bypass_cache() { file_.bypass_cache(); }
  /// The name that it will have.
  const std::string& path() const noexcept { return path_; }

  /// Makes the content durable (fsync), under no name yet.
  void sync() { file_.sync(); }
  /// Gives the file its name, and makes that durable. Calls sync() first.
  void publish();

 private:
  std::string path_;
  Existing existing_;
  File file_;  // under path_ + ".partial"
  bool published_ = false;
};

}  // namespace qchain
