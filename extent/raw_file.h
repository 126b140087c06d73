#pragma once

#include <memory>
#include <string>

#include "extent/block_device.h"
#include "extent/file.h"

namespace qchain {

/// A raw image or a block device, read only. Holes of a file are Zero; all else is Data.
class RawFile : public BlockDevice {
 public:
  explicit RawFile(File file) : file_(std::move(file)), size_(file_.size()) {}

  std::string name() const override { return file_.path(); }
  std::uint64_t size() const override { return size_; }
  Extents extents(const GuestRange& range) override { return holes_and_data(range); }
  std::unique_ptr<Reader> open_reader() override;

  /// extents(), for several threads at a time.
  Extents holes_and_data(const GuestRange& range) const;

  const File& file() const noexcept { return file_; }

 private:
  File file_;
  std::uint64_t size_;
};

}  // namespace qchain
