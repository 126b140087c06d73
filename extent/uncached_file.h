#pragma once

#include <memory>
#include <string>

#include "extent/raw_file.h"

namespace qchain {

/// A raw file or a block device, read from storage and not from the page cache. What was written has to be
/// durable before. On a file system without direct I/O, the file's cached pages are dropped once, at the
/// beginning.
class UncachedFile : public BlockDevice {
 public:
  /// `name`: for messages; empty: the path. Throws Error (Io).
  explicit UncachedFile(const std::string& path, const std::string& name = {});

  std::string name() const override { return file_.name(); }
  std::uint64_t size() const override { return file_.size(); }
  Extents extents(const GuestRange& range) override { return file_.extents(range); }
  std::unique_ptr<Reader> open_reader() override;

 private:
  RawFile file_;
};

}  // namespace qchain
