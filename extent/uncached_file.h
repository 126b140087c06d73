#pragma once

#include <memory>
#include <string>

#include "extent/raw_file.h"

namespace qchain {

/// A raw file or a block device as the storage has it: what it reads does not come from the page cache. What
/// was written has to be durable before. On a file system that has no direct I/O, the cache is dropped once,
/// at the beginning.
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
