#include "extent/uncached_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "extent/error.h"

namespace qchain {

namespace {

// Direct I/O requires aligned offsets, lengths and memory. No device has larger blocks than this.
constexpr std::uint64_t kUnit = std::uint64_t{64} << 10;
constexpr std::uint64_t kBuffer = 16 * kUnit;

RawFile open_uncached(const std::string& path, const std::string& name) {
  const int direct = open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
  if (direct >= 0) return RawFile(File(direct, name));
  if (errno != EINVAL) throw system_error(fmt::format("{}: cannot open", name), errno);
  const int cached = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (cached < 0) throw system_error(fmt::format("{}: cannot open", name), errno);
  File file(cached, name);
  const int error = posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_DONTNEED);
  if (error != 0) throw system_error(fmt::format("{}: cannot drop its cached pages", name), error);
  return RawFile(std::move(file));
}

class UncachedReader : public Reader {
 public:
  explicit UncachedReader(const RawFile& file)
      : file_(file), buffer_(static_cast<std::byte*>(std::aligned_alloc(kUnit, kBuffer))) {
    if (!buffer_) throw std::bad_alloc();
  }

  void read(std::span<const ReadRequest> batch) override {
    for (ReadRequest rest : batch) {
      while (!rest.into.empty()) {
        const std::uint64_t begin = align_down(rest.begin.bytes(), kUnit);
        const std::size_t skipped = rest.begin.bytes() - begin;
        const std::size_t step = std::min<std::uint64_t>(rest.into.size(), kBuffer - skipped);
        fill_buffer(begin, skipped + step);
        std::memcpy(rest.into.data(), buffer_.get() + skipped, step);
        rest = {rest.begin + step, rest.into.subspan(step)};
      }
    }
  }

 private:
  struct Free {
    void operator()(std::byte* memory) const noexcept { std::free(memory); }
  };

  // Reads whole units, and at least `needed` bytes: the file may end inside a unit.
  void fill_buffer(std::uint64_t begin, std::size_t needed) {
    const std::size_t length = align_up(needed, kUnit);
    for (std::size_t done = 0; done < needed;) {
      const ssize_t n = pread(file_.file().descriptor(), buffer_.get() + done, length - done,
                              static_cast<off_t>(begin + done));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) {
        throw ReadError(fmt::format("{}: cannot read {} bytes at offset {:#x} (direct I/O)", file_.name(),
                                    needed - done, begin + done),
                        n < 0 ? errno : EIO);
      }
      done += static_cast<std::size_t>(n);
    }
  }

  const RawFile& file_;
  std::unique_ptr<std::byte, Free> buffer_;
};

}  // namespace

UncachedFile::UncachedFile(const std::string& path, const std::string& name)
    : file_(open_uncached(path, name.empty() ? path : name)) {}

std::unique_ptr<Reader> UncachedFile::open_reader() { return std::make_unique<UncachedReader>(file_); }

}  // namespace qchain
