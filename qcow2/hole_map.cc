#include "qcow2/hole_map.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>

namespace qchain {

HoleMap::HoleMap(const File& file)
    : file_(file), sparse_(file.is_regular() && file.allocated_bytes() < file.size()) {}

HoleMap::Run HoleMap::at(HostOffset begin, std::uint64_t length) {
  if (begin.bytes() < begin_ || begin.bytes() >= end_) query(begin.bytes());
  return {std::min(length, end_ - begin.bytes()), is_hole_};
}

// File systems without holes report all of a file as data; so does this on an unexpected error.
void HoleMap::query(std::uint64_t begin) {
  constexpr std::uint64_t kForever = std::numeric_limits<std::uint64_t>::max();
  const auto seek = [&](int whence) { return lseek(file_.descriptor(), static_cast<off_t>(begin), whence); };
  begin_ = begin;
  is_hole_ = false;
  end_ = kForever;
  // Past its end, a file has no zeros: a read there has to fail.
  if (begin >= file_.size()) return;
  const off_t data = seek(SEEK_DATA);
  if (data < 0) {
    is_hole_ = errno == ENXIO;
    end_ = is_hole_ ? file_.size() : kForever;
  } else if (static_cast<std::uint64_t>(data) > begin) {
    is_hole_ = true;
    end_ = static_cast<std::uint64_t>(data);
  } else {
    const off_t hole = seek(SEEK_HOLE);
    if (hole > data) end_ = static_cast<std::uint64_t>(hole);
  }
}

}  // namespace qchain
