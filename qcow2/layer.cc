#include "qcow2/layer.h"

namespace qchain {

const File& Layer::file() const noexcept {
  const Image* const qcow2 = image();
  return qcow2 != nullptr ? qcow2->file() : std::get<RawFile>(source_).file();
}

const File& Layer::data() const noexcept {
  const Image* const qcow2 = image();
  return qcow2 != nullptr ? qcow2->data() : file();
}

std::uint64_t Layer::virtual_size() const noexcept {
  const Image* const qcow2 = image();
  if (qcow2 == nullptr) return align_up(std::get<RawFile>(source_).size(), kSectorSize);
  return align_down(qcow2->header().virtual_size, kSectorSize);
}

std::optional<Identity> Layer::identity() const {
  const Image* const qcow2 = image();
  return qcow2 != nullptr ? qcow2->identity() : std::nullopt;
}

std::uint64_t Layer::true_length() const {
  if (image() == nullptr) return std::get<RawFile>(source_).size();
  const std::optional<Identity> known = identity();
  // The recorded length is valid unless the image was resized since.
  if (known && align_up(known->length, kSectorSize) == virtual_size()) return known->length;
  return virtual_size();
}

}  // namespace qchain
