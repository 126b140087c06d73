#include "extent/raw_file.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace qchain {

namespace {

class RawReader : public Reader {
 public:
  explicit RawReader(const File& file) : file_(file) {}

  void read(std::span<const ReadRequest> batch) override {
    for (const ReadRequest& request : batch) {
      file_.read(HostOffset(request.begin.bytes()), request.into);
    }
  }

 private:
  const File& file_;
};

}  // namespace

Extents RawFile::holes_and_data(const GuestRange& range) const {
  // File systems without holes report all of a file as data; so does this on an unexpected error.
  const auto seek = [&](int whence) {
    return lseek(file_.descriptor(), static_cast<off_t>(range.begin.bytes()), whence);
  };
  const off_t data = seek(SEEK_DATA);
  if (data < 0 && errno == ENXIO) return {{range, Kind::Zero}};
  if (data < 0) return {{range, Kind::Data}};
  const GuestOffset data_begin(static_cast<std::uint64_t>(data));
  if (data_begin > range.begin) return {{{range.begin, std::min(range.end, data_begin)}, Kind::Zero}};
  const off_t hole = seek(SEEK_HOLE);
  if (hole <= data) return {{range, Kind::Data}};
  const GuestOffset data_end(static_cast<std::uint64_t>(hole));
  return {{{range.begin, std::min(range.end, data_end)}, Kind::Data}};
}

std::unique_ptr<Reader> RawFile::open_reader() { return std::make_unique<RawReader>(file_); }

}  // namespace qchain
