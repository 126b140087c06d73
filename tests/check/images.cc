#include "tests/check/images.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace qchain::tests {

namespace {

constexpr std::uint64_t kMaxDisk = std::uint64_t{12} << 20;

std::string random_command(Random& random, const Shape& shape) {
  const std::uint64_t cluster = shape.cluster_size();
  const std::uint64_t sectors = shape.size / 512;
  const std::uint64_t begin = random.below(sectors);
  const std::uint64_t most = std::min(sectors - begin, 1 + random.any_size(14));
  const std::uint64_t length = random.between(1, std::max<std::uint64_t>(most, 1));
  const unsigned pattern = random.bits(1, 255);
  switch (random.below(8)) {
    case 0:
      return fmt::format("write -z {} {}", begin * 512, length * 512);
    case 1:
      return fmt::format("write -z -u {} {}", begin * 512, length * 512);
    case 2:
      return fmt::format("discard {} {}", begin * 512, length * 512);
    case 3:
    case 4: {
      if (shape.size < cluster) break;
      const std::uint64_t index = random.below(shape.size / cluster);
      return fmt::format("write -c -P {} {} {}", pattern, index * cluster, cluster);
    }
    default:
      break;
  }
  return fmt::format("write -P {} {} {}", pattern, begin * 512, length * 512);
}

void write_something(Random& random, const Shape& shape, const std::string& path) {
  std::vector<std::string> command{"qemu-io", "-f", "qcow2", "-t", "unsafe", "-d", "unmap"};
  for (std::uint64_t i = random.between(1, 12); i > 0; --i) {
    command.insert(command.end(), {"-c", random_command(random, shape)});
  }
  // With lazy refcounts, a crash leaves the dirty bit.
  if (shape.lazy && random.chance(20)) command.insert(command.end(), {"-c", "flush", "-c", "abort"});
  command.push_back(path);
  run(command);
}

}  // namespace

std::string Shape::options() const {
  std::string text = fmt::format("cluster_size={},compat={}", cluster_size(), version == 2 ? "0.10" : "1.1");
  if (version == 2) return text;
  text += fmt::format(",refcount_bits={}", 1U << refcount_order);
  if (extended_l2) text += ",extended_l2=on";
  if (zstd) text += ",compression_type=zstd";
  if (lazy) text += ",lazy_refcounts=on";
  return text;
}

Shape random_shape(Random& random) {
  Shape shape;
  shape.cluster_bits = random.chance(10) ? random.bits(17, 21) : random.bits(9, 16);
  shape.version = random.chance(10) ? 2 : 3;
  if (shape.version == 3) {
    shape.refcount_order = random.bits(0, 6);
    shape.extended_l2 = shape.cluster_bits >= 14 && random.chance(40);
    shape.zstd = random.chance(30);
    shape.lazy = random.chance(15);
  }
  const std::uint64_t most = std::min(kMaxDisk, shape.cluster_size() * 2000);
  shape.size = random.between(1, most / 512) * 512;
  return shape;
}

void make_random_image(Random& random, const Shape& shape, const std::string& path) {
  std::vector<std::string> create{"qemu-img", "create", "-q", "-f", "qcow2", "-o", shape.options()};
  if (random.chance(10)) create.back() += ",preallocation=metadata";
  create.insert(create.end(), {path, std::to_string(shape.size)});
  must(create);
  const std::string image = "qcow2";
  for (std::uint64_t round = random.between(1, 4); round > 0; --round) {
    write_something(random, shape, path);
    switch (random.below(8)) {
      case 0:
      case 1:
        run({"qemu-img", "snapshot", "-c", fmt::format("snap{}", round), path});
        break;
      case 2:
        run({"qemu-img", "snapshot", "-d", fmt::format("snap{}", round + 1), path});
        break;
      case 3:
      case 4:
        run({"qemu-img", "bitmap", "-f", image, "--add", "-g", std::to_string(512U << random.bits(0, 8)),
             path, fmt::format("bitmap{}", round)});
        break;
      case 5:
        run({"qemu-img", "resize", "-q", "-f", image, path, fmt::format("+{}", random.between(1, 64) * 512)});
        break;
      default:
        break;
    }
  }
}

QemuVerdict check_by_qemu(const std::string& path) {
  const Finished done = run({"timeout", "20", "qemu-img", "check", "-q", "-f", "qcow2", path});
  switch (done.status) {
    case 0:
      return QemuVerdict::Clean;
    case 3:
      return QemuVerdict::Leaks;
    case 2:
      return QemuVerdict::Corrupt;
    default:
      return QemuVerdict::CannotOpen;
  }
}

const char* to_string(QemuVerdict verdict) {
  switch (verdict) {
    case QemuVerdict::Clean:
      return "clean";
    case QemuVerdict::Leaks:
      return "leaks";
    case QemuVerdict::Corrupt:
      return "corrupt";
    case QemuVerdict::CannotOpen:
      return "cannot be opened";
  }
  return "?";
}

CheckReport check_by_us(const std::string& path, Payloads payloads) {
  return check_chain(survey(path, ImageFormat::Qcow2, {}), payloads);
}

QemuVerdict verdict_of(const CheckReport& report) {
  if (report.layers.empty() || !report.problems.empty()) return QemuVerdict::CannotOpen;
  switch (report.outcome(false)) {
    case Outcome::Mismatch:
      return QemuVerdict::Corrupt;
    case Outcome::Done:
      return report.outcome(true) == Outcome::Mismatch ? QemuVerdict::Leaks : QemuVerdict::Clean;
    default:
      return QemuVerdict::CannotOpen;
  }
}

bool is_missed(QemuVerdict by_qemu, const CheckReport& by_us) {
  const QemuVerdict ours = verdict_of(by_us);
  if (by_qemu == QemuVerdict::Clean) return false;
  if (ours == QemuVerdict::Clean) return true;
  return by_qemu != QemuVerdict::Leaks && ours == QemuVerdict::Leaks &&
         count(by_us, Flaw::RefcountStale) == 0;
}

bool is_damage_that_qemu_misses(const CheckReport& report) {
  if (report.layers.empty()) return false;
  const std::vector<Finding>& findings = report.layers.at(0).findings.kept();
  const auto is_shared = [](const Finding& finding) {
    return finding.flaw == Flaw::Overlap && finding.what.ends_with("data and compressed data");
  };
  // The streams that were there do not decode any more, where the plain data came last.
  const auto lies_in_shared = [&](const Finding& stream) {
    return std::ranges::any_of(findings, [&](const Finding& finding) {
      return is_shared(finding) && finding.host.begin < stream.host.end &&
             stream.host.begin < finding.host.end;
    });
  };
  return std::ranges::all_of(findings, [&](const Finding& finding) {
    return is_shared(finding) || finding.flaw == Flaw::MarkedCorrupt ||
           (finding.flaw == Flaw::BadStream && lies_in_shared(finding));
  });
}

std::string words_of(const CheckReport& report) {
  std::string words;
  for (const Survey::Problem& problem : report.problems) words += problem.message + '\n';
  for (const LayerCheck& layer : report.layers) {
    for (const Finding& finding : layer.findings.kept()) {
      words += fmt::format("{}: {} {}\n", qchain::to_string(finding.severity),
                           qchain::to_string(finding.flaw), describe(finding));
    }
  }
  return words;
}

std::uint64_t count(const CheckReport& report, Flaw flaw) {
  std::uint64_t total = 0;
  for (const LayerCheck& layer : report.layers) total += layer.findings.count(flaw);
  return total;
}

std::uint64_t DamagedImage::number(std::uint64_t offset, unsigned bytes) const {
  std::uint64_t value = 0;
  for (unsigned i = 0; i < bytes; ++i) {
    value =
        value << 8 | (offset + i < sound_.size() ? std::to_integer<std::uint64_t>(sound_[offset + i]) : 0);
  }
  return value;
}

void DamagedImage::put(std::uint64_t offset, std::uint64_t value, unsigned bytes) {
  Bytes raw(bytes);
  for (unsigned i = 0; i < bytes; ++i) raw[i] = static_cast<std::byte>(value >> (8 * (bytes - 1 - i)));
  put(offset, raw);
}

void DamagedImage::put(std::uint64_t offset, const Bytes& bytes) {
  File file(open(path_.c_str(), O_RDWR | O_CLOEXEC), path_);
  file.write(HostOffset(offset), bytes);
  damage_.emplace_back(offset, bytes.size());
}

void DamagedImage::flip(std::uint64_t offset, unsigned bit) {
  put(offset, word(offset) ^ std::uint64_t{1} << bit);
}

void DamagedImage::truncate(std::uint64_t size) {
  File(open(path_.c_str(), O_RDWR | O_CLOEXEC), path_).resize(size);
  cut_ = true;
}

void DamagedImage::restore() {
  File file(open(path_.c_str(), O_RDWR | O_CLOEXEC), path_);
  if (cut_) {
    file.write(HostOffset(0), sound_);
  } else {
    for (const auto& [offset, length] : damage_) {
      if (offset >= sound_.size()) continue;
      const std::size_t held = std::min<std::size_t>(length, sound_.size() - offset);
      file.write(HostOffset(offset), std::span(sound_).subspan(offset, held));
    }
  }
  file.resize(sound_.size());
  damage_.clear();
  cut_ = false;
}

MetadataMap::MetadataMap(const DamagedImage& image) {
  const bool v3 = image.number(4, 4) >= 3;
  extended_l2 = v3 && (image.word(72) >> 4 & 1) != 0;
  cluster_size = std::uint64_t{1} << image.number(20, 4);
  disk = image.word(24);
  l1_table = image.word(40);
  refcount_table = image.word(48);
  snapshot_table = image.word(64);
  if (v3) refcount_order = static_cast<unsigned>(image.number(96, 4));
  const std::uint64_t step = extended_l2 ? 16 : 8;
  const std::uint64_t entries = cluster_size / step;
  for (std::uint64_t i = 0; i < image.number(36, 4); ++i) {
    const Entry top{l1_table + i * 8, image.word(l1_table + i * 8), i * entries * cluster_size};
    if (top.raw == 0) continue;
    l1.push_back(top);
    for (std::uint64_t k = 0; k < entries; ++k) {
      const std::uint64_t at = host(top) + k * step;
      l2.push_back({at, image.word(at), top.guest + k * cluster_size});
    }
  }
  for (std::uint64_t at = v3 ? image.number(100, 4) : 72; image.number(at, 4) != 0;
       at += 8 + align_up(image.number(at + 4, 4), 8)) {
    if (image.number(at, 4) == 0x23852875) bitmap_directory = image.word(at + 24);
  }
  for (std::uint64_t i = 0; i < image.number(56, 4) * cluster_size / 8; ++i) {
    const std::uint64_t at = refcount_table + i * 8;
    if (image.word(at) != 0) refcount_blocks.push_back({at, image.word(at), 0});
  }
}

bool MetadataMap::is_plain(const Entry& entry) const {
  return !is_compressed(entry) && (entry.raw & 1) == 0 && host(entry) != 0;
}

std::uint64_t MetadataMap::refcount_at(std::uint64_t host) const {
  const std::uint64_t cluster = host / cluster_size;
  const std::uint64_t per_block = cluster_size * 8 >> refcount_order;
  for (const Entry& block : refcount_blocks) {
    if ((block.at - refcount_table) / 8 == cluster / per_block) {
      return block.raw + ((cluster % per_block) << refcount_order) / 8;
    }
  }
  return 0;
}

}  // namespace qchain::tests
