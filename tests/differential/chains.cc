#include "tests/differential/chains.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <optional>

namespace qchain::tests {

namespace {

constexpr std::uint64_t kMiB = 1 << 20;

class ChainMaker {
 public:
  ChainMaker(Random& random, const Folder& folder)
      : random_(random),
        folder_(folder),
        disk_(sectors(random.one_of<std::uint64_t>({100000, kMiB, 3 * kMiB}))) {}

  RandomChain make() {
    const std::uint64_t depth = random_.between(1, 5);
    for (std::uint64_t i = 0; i < depth; ++i) {
      const std::string below = chain_.layers.empty() ? "" : chain_.layers.front();
      const bool raw = i == 0 && random_.chance(25);
      chain_.layers.insert(chain_.layers.begin(), folder_ / fmt::format("{}.{}", i, raw ? "raw" : "qcow2"));
      if (raw) {
        make_raw();
      } else {
        make_qcow2(below);
      }
      chain_.format = raw ? ImageFormat::Raw : ImageFormat::Qcow2;
    }
    return std::move(chain_);
  }

 private:
  const std::string& path() const { return chain_.layers.front(); }

  // Whole sectors, up to `most` bytes.
  std::uint64_t sectors(std::uint64_t most) { return 512 * random_.between(1, most / 512); }

  // A part of `size` bytes, at multiples of `unit`, as qemu-io takes it.
  std::string range_in(std::uint64_t size, std::uint64_t unit) {
    const std::uint64_t begin = align_down(random_.below(size), unit);
    const std::uint64_t longest = std::max(size / random_.one_of<std::uint64_t>({2, 6, 6, 30}), unit);
    const std::uint64_t length = align_up(random_.between(1, longest), unit);
    return fmt::format("{} {}", begin, std::min(length, size - begin));
  }

  void log(const std::vector<std::string>& command) {
    chain_.story.push_back(fmt::format("{}", fmt::join(command, " ")));
  }
  bool has_run(const std::vector<std::string>& command) {
    log(command);
    return run(command).status == 0;
  }

  void make_raw() {
    std::uint64_t size = random_.chance(50) ? disk_ : sectors(disk_);
    if (random_.chance(40)) size -= random_.below(512);  // QEMU rounds it up
    chain_.story.push_back(fmt::format("a raw base of {} bytes", size));
    const File file = create_file(path());
    file.resize(size);
    for (std::uint64_t i = random_.between(0, 6); i > 0; --i) {
      Bytes bytes(random_.between(1, std::min<std::uint64_t>(size, 200000)));
      random_.fill(bytes);
      file.write(HostOffset(random_.between(0, size - bytes.size())), bytes);
    }
  }

  Shape any_shape() {
    Shape shape = random_shape(random_);
    shape.size = random_.chance(60) ? disk_ : sectors(disk_);
    // An L2 table for every few sectors is slow to make.
    shape.size = std::min(shape.size, 3000 * shape.cluster_size());
    return shape;
  }

  void make_qcow2(const std::string& below) {
    Shape shape = any_shape();
    const bool data_file = shape.version == 3 && random_.chance(15);
    std::string options = shape.options();
    if (data_file) {
      chain_.data_files.push_back(path() + ".data");
      options += fmt::format(",data_file={}", chain_.data_files.back());
      // The data file alone is then the disk, so that it has no backing file.
      if (below.empty() && random_.chance(50)) options += ",data_file_raw=on";
    }
    // Preallocated clusters inherit from a backing file only with subclusters.
    if ((below.empty() || shape.extended_l2) && random_.chance(25)) {
      options += ",preallocation=" + random_.one_of<std::string>({"metadata", "metadata", "falloc", "full"});
    }
    std::vector<std::string> create{"qemu-img", "create", "-q", "-f", "qcow2", "-o", options};
    if (!below.empty()) {
      const std::string name = std::filesystem::path(below).filename();
      create.insert(create.end(), {"-b", name, "-F", below.ends_with(".raw") ? "raw" : "qcow2"});
    }
    create.insert(create.end(), {path(), std::to_string(shape.size)});
    log(create);
    must(create);
    live(shape, data_file);
    if (random_.chance(5)) make_size_odd();
  }

  // What happens to an image between its creation and the next layer.
  void live(Shape& shape, bool data_file) {
    write(shape, data_file);
    for (int i = 0; i < 2; ++i) {
      switch (random_.below(8)) {
        case 0:
          if (!has_run({"qemu-img", "snapshot", "-c", "snap", path()})) break;
          write(shape, data_file);
          if (random_.chance(30)) has_run({"qemu-img", "snapshot", "-a", "snap", path()});
          break;
        case 1:
          has_run({"qemu-img", "bitmap", "-f", "qcow2", "--add", "-g",
                   std::to_string(512U << random_.bits(0, 8)), path(), "bitmap"});
          write(shape, data_file);
          break;
        case 2: {
          const std::uint64_t size = sectors(disk_ + 65536);
          const char* const shrink = size < shape.size ? "--shrink" : "-q";
          if (has_run({"qemu-img", "resize", "-q", shrink, "-f", "qcow2", path(), std::to_string(size)})) {
            shape.size = size;
          }
          break;
        }
        default:
          return;
      }
    }
  }

  void write(const Shape& shape, bool data_file) {
    std::vector<std::string> command{"qemu-io", "-f", "qcow2", "-t", "unsafe", "-d", "unmap"};
    const std::uint64_t cluster = shape.cluster_size();
    // Compressed clusters first: they replace no others, and QEMU 7.2 mixes up their places once some were
    // discarded.
    if (!data_file && random_.chance(50)) {
      for (std::uint64_t i = random_.between(1, 8); i > 0; --i) {
        const std::uint64_t begin = align_down(random_.below(shape.size), cluster);
        const std::uint64_t length =
            std::min(cluster * random_.one_of<std::uint64_t>({1, 1, 3}), shape.size - begin);
        command.insert(command.end(), {"-c", fmt::format("write -c {} {} {}", any_content(), begin, length)});
      }
    }
    for (std::uint64_t i = random_.between(0, 10); i > 0; --i) {
      command.insert(command.end(), {"-c", any_write(shape)});
    }
    // With lazy refcounts, a crash leaves the dirty bit.
    if (shape.lazy && random_.chance(30)) command.insert(command.end(), {"-c", "flush", "-c", "abort"});
    command.push_back(path());
    if (command.size() > 8) has_run(command);
  }

  std::string any_write(const Shape& shape) {
    const std::string verb = random_.one_of<std::string>({"write " + any_content(), "write " + any_content(),
                                                          "write " + any_content(), "write -P 0", "write -z",
                                                          "write -z -u", "discard"});
    const std::uint64_t subcluster = std::max<std::uint64_t>(shape.cluster_size() / 32, 512);
    const std::uint64_t unit = random_.one_of<std::uint64_t>({512, 4096, shape.cluster_size(), subcluster});
    return fmt::format("{} {}", verb, range_in(shape.size, unit));
  }

  // It compresses, and no two places of a layer look alike.
  std::string any_content() {
    if (random_.chance(30)) return fmt::format("-P {}", random_.bits(1, 255));
    const std::string pattern = path() + (random_.chance(20) ? ".noise" : ".pattern");
    if (!std::filesystem::exists(pattern)) {
      Bytes bytes(400000);
      random_.fill(bytes);
      if (pattern.ends_with(".pattern")) {
        for (std::byte& byte : bytes) byte = (byte & std::byte{0x0F}) | std::byte{0x20};
      }
      write_file(pattern, bytes);
    }
    return "-s " + pattern;
  }

  // QEMU rounds down a size that is not a multiple of 512.
  void make_size_odd() {
    DamagedImage image(path());
    const std::uint64_t size = image.word(24);
    if (size <= 512) return;
    image.put(24, size - random_.between(1, 511));
    chain_.story.push_back(fmt::format("its size becomes {}", DamagedImage(path()).word(24)));
  }

  Random& random_;
  const Folder& folder_;
  const std::uint64_t disk_;  // bytes; what most layers have
  RandomChain chain_;
};

}  // namespace

OpenOptions RandomChain::options() const {
  OpenOptions options;
  options.allow_data_file = true;
  return options;
}

RandomChain make_random_chain(Random& random, const Folder& folder) {
  return ChainMaker(random, folder).make();
}

std::optional<Bytes> read_by_qemu(const RandomChain& chain, const Folder& folder) {
  const std::string raw = folder / "content";
  const Finished done = run({"timeout", "20", "qemu-img", "convert", "-t", "unsafe", "-f",
                             chain.format_name(), "-O", "raw", chain.top(), raw});
  std::optional<Bytes> bytes;
  if (done.status == 0) bytes = read_file(raw);
  std::filesystem::remove(raw);
  return bytes;
}

}  // namespace qchain::tests
