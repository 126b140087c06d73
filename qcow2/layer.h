#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "extent/raw_file.h"
#include "qcow2/image.h"

namespace qchain {

/// One layer of a chain: a qcow2 image, or a raw base.
class Layer {
 public:
  explicit Layer(Image image) : source_(std::move(image)) {}
  explicit Layer(RawFile raw) : source_(std::move(raw)) {}

  /// nullptr for a raw base.
  const Image* image() const noexcept { return std::get_if<Image>(&source_); }
  /// nullptr for a qcow2 image.
  const RawFile* raw() const noexcept { return std::get_if<RawFile>(&source_); }

  const File& file() const noexcept;
  /// Where data clusters are: the file itself, or an external data file.
  const File& data() const noexcept;
  const std::string& path() const noexcept { return file().path(); }
  const char* format() const noexcept { return image() != nullptr ? "qcow2" : "raw"; }
  /// Bytes of the disk; for a raw file rounded up to sectors, as in QEMU.
  std::uint64_t virtual_size() const noexcept;
  std::optional<Identity> identity() const;
  /// Bytes of the disk before it was rounded up to sectors, if that is known.
  std::uint64_t true_length() const;

 private:
  std::variant<Image, RawFile> source_;
};

}  // namespace qchain
