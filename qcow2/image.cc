#include "qcow2/image.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

#include "extent/cancellation.h"
#include "extent/error.h"
#include "qcow2/compression.h"
#include "qcow2/format.h"

namespace qchain {

namespace {

constexpr std::size_t kMinWindowBytes = 4096;
constexpr std::size_t kMaxWindowBytes = std::size_t{64} << 10;

Header read_header(const File& file, std::uint64_t file_size) {
  std::vector<std::byte> bytes(4096);
  bytes.resize(file.read_at_most(HostOffset(0), bytes));
  bytes.resize(header_bytes(bytes));
  bytes.resize(file.read_at_most(HostOffset(0), bytes));
  return decode_header(bytes, file_size, file.path());
}

}  // namespace

void append(std::vector<Mapping>& mappings, const Mapping& mapping) {
  if (mapping.range.empty()) return;
  if (!mappings.empty()) {
    Mapping& last = mappings.back();
    const bool alike = last.kind == mapping.kind && last.storage == mapping.storage &&
                       last.layer == mapping.layer && last.range.end == mapping.range.begin;
    const bool continues =
        mapping.storage == Storage::None ||
        (mapping.storage == Storage::Plain && last.host + last.range.length() == mapping.host);
    if (alike && continues) {
      last.range.end = mapping.range.end;
      return;
    }
  }
  mappings.push_back(mapping);
}

Image::Image(File file)
    : file_(std::move(file)),
      file_size_(file_.size()),
      data_size_(file_size_),
      header_(read_header(file_, file_size_)),
      geometry_(header_.geometry()) {
  if (header_.identity) identity_ = decode_identity(*header_.identity, path());
}

void Image::attach_data_file(File data_file) {
  data_size_ = data_file.size();
  data_file_.emplace(std::move(data_file));
}

EntryBounds Image::bounds() const noexcept {
  const bool data_file = header_.has_incompatible(kIncompatibleDataFile);
  return {file_size_, data_file && !has_data_file() ? EntryBounds::kUnknown : data_size_, data_file};
}

void Image::require_readable() const {
  std::vector<std::string> names = header_.unsupported();
  if (header_.has_incompatible(kIncompatibleDataFile) && !has_data_file()) {
    names.push_back(fmt::format("an external data file (\"{}\")", header_.data_file_name));
  }
  const bool only_data_file = names.size() == 1 && header_.unsupported().empty();
  if (names.empty()) return;
  std::string list = names.front();
  for (std::size_t i = 1; i < names.size(); ++i) list += ", " + names[i];
  throw Error(Outcome::Incomplete, fmt::format("{}: uses {}, which is not supported", path(), list),
              only_data_file ? Remedy::AllowDataFile : Remedy::None);
}

void Image::read_compressed(const Mapping& mapping, std::span<std::byte> cluster) const {
  std::vector<std::byte> stream(mapping.compressed_bytes);
  // The length is rounded up to sectors, and the last stream of a file may end before that.
  stream.resize(file_.read_at_most(mapping.host, stream));
  const Decoded decoded = decompress(header_.compression(), stream, cluster);
  if (decoded.error.empty()) return;
  const bool is_cut = decoded.truncated && stream.size() < mapping.compressed_bytes;
  throw Error(Outcome::Mismatch,
              fmt::format("{}: compressed cluster at {:#x} for guest {}: {}{}", path(), mapping.host.bytes(),
                          to_string(mapping.range), decoded.error,
                          is_cut ? fmt::format("; the file is truncated ({} bytes)", file_size_) : ""));
}

// One word of a table, read through the window: at least kMinWindowBytes at a time, up to kMaxWindowBytes if
// `wanted` words are going to be needed, and never past the end of the table.
std::uint64_t Mapper::word(Window& window, HostOffset table, std::uint64_t index, std::uint64_t wanted,
                           std::uint64_t table_words) {
  constexpr std::uint64_t kWord = sizeof(std::uint64_t);
  const std::uint64_t held = window.bytes.size() / kWord;
  if (window.table != table || index < window.first || index - window.first >= held) {
    const std::uint64_t words =
        std::min(std::clamp<std::uint64_t>(wanted, kMinWindowBytes / kWord, kMaxWindowBytes / kWord),
                 table_words - index);
    throw_if_cancelled();
    window.bytes.resize(words * kWord);
    window.table = HostOffset(0);
    image_.file().read(table + index * kWord, window.bytes);
    window.table = table;
    window.first = index;
  }
  return decode_struct<Be64>(window.bytes.data() + (index - window.first) * kWord);
}

// How often the word at `index`, which is in the window, is repeated in a row: at least once.
std::uint64_t Mapper::repeats(const Window& window, std::uint64_t index) {
  constexpr std::size_t kWord = sizeof(std::uint64_t);
  constexpr std::size_t kStride = 64 * kWord;
  const std::span<const std::byte> words = std::span(window.bytes).subspan((index - window.first) * kWord);
  std::size_t end = kWord;  // of the words that are known to be equal
  const auto next_are_alike = [&](std::size_t length) {
    return length <= words.size() - end &&
           std::memcmp(words.data() + end, words.data() + end - kWord, length) == 0;
  };
  while (next_are_alike(kStride)) end += kStride;
  while (next_are_alike(kWord)) end += kWord;
  return end / kWord;
}

// The L2 table that maps the beginning of `covered`, which lies in the range of this L1 entry. Cuts `covered`
// if the file ends inside the table.
HostOffset Mapper::l2_table(std::uint64_t l1_index, GuestRange& covered) {
  const Header& header = image_.header();
  const Geometry& geometry = image_.geometry();
  const L1Entry entry = decode_l1(word(l1_, header.l1_table, l1_index, 0, header.l1_entries));
  const GuestRange visible = intersect(guest_range(l1_index * geometry.l2_coverage(), geometry.l2_coverage()),
                                       guest_range(0, header.virtual_size));
  const EntryCheck check = check_entry(entry, geometry, image_.bounds(), visible);
  if (check.lost.empty()) return entry.table;
  if (covered.begin < check.lost.begin) {
    covered.end = std::min(covered.end, check.lost.begin);
    return entry.table;
  }
  throw Error(Outcome::Mismatch,
              fmt::format("{}: L1 entry {} at {:#x} is {:#018x}: {} ({} bytes)", image_.path(), l1_index,
                          (header.l1_table + l1_index * sizeof(std::uint64_t)).bytes(), encode_l1(entry),
                          check.message, image_.file_size()));
}

// A cluster that is truncated by the end of the file is an error only when the missing bytes are read.
void Mapper::require_valid(const L2Entry& entry, GuestOffset cluster, const GuestRange& part) const {
  const GuestRange visible = intersect({cluster, cluster + image_.geometry().cluster_size()},
                                       guest_range(0, image_.header().virtual_size));
  const EntryCheck check = check_entry(entry, image_.geometry(), image_.bounds(), visible);
  if (check.problem == EntryProblem::Truncated || intersect(check.lost, part).empty()) return;
  throw Error(
      Outcome::Mismatch,
      fmt::format("{}: L2 entry for guest offset {:#x}: {}{}", image_.path(), cluster.bytes(), check.message,
                  check.problem == EntryProblem::PastEnd
                      ? fmt::format(" ({:#x} in {}, which has {} bytes)", entry.host.bytes(),
                                    image_.data().path(), image_.data_size())
                      : ""));
}

void Mapper::map_cluster(const L2Entry& entry, GuestOffset cluster, const GuestRange& part,
                         std::vector<Mapping>& mappings) const {
  if (entry.storage == Storage::Compressed) {
    append(mappings, {part, Kind::Data, Storage::Compressed, entry.host, entry.compressed_bytes, 0});
    return;
  }
  const Geometry& geometry = image_.geometry();
  for (GuestRange rest = part; !rest.empty();) {
    const std::uint64_t within = rest.begin - cluster;
    const std::uint64_t index = geometry.extended_l2() ? within / geometry.unit() : 0;
    const GuestOffset unit_end = cluster + (index + 1) * geometry.unit();
    const Kind kind = entry.kind(static_cast<unsigned>(index));
    Mapping mapping{{rest.begin, std::min(rest.end, unit_end)}, kind, Storage::None, {}, 0, 0};
    if (kind == Kind::Data) {
      mapping.storage = Storage::Plain;
      mapping.host = entry.host + within;
    }
    append(mappings, mapping);
    rest.begin = mapping.range.end;
  }
}

GuestOffset Mapper::map(const GuestRange& range, std::size_t max, std::vector<Mapping>& mappings) {
  const Geometry& geometry = image_.geometry();
  const std::uint64_t coverage = geometry.l2_coverage();
  const std::uint64_t words_per_entry = geometry.l2_entry_bytes() / sizeof(std::uint64_t);
  const bool data_file = image_.header().has_incompatible(kIncompatibleDataFile);
  GuestOffset at = range.begin;
  while (at < range.end && mappings.size() < max) {
    const std::uint64_t l1_index = at.bytes() / coverage;
    GuestRange covered = intersect({at, range.end}, guest_range(l1_index * coverage, coverage));
    const HostOffset table = l2_table(l1_index, covered);
    if (table == HostOffset(0)) {
      append(mappings, {covered, Kind::Inherit, Storage::None, {}, 0, 0});
      at = covered.end;
      continue;
    }
    // The file may end inside the table, after the entries that the disk needs.
    const std::uint64_t table_words = std::min(geometry.cluster_size(), image_.file_size() - table.bytes()) /
                                      geometry.l2_entry_bytes() * words_per_entry;
    while (at < covered.end && mappings.size() < max) {
      const GuestOffset cluster(align_down(at.bytes(), geometry.cluster_size()));
      const std::uint64_t index = (cluster.bytes() % coverage) / geometry.cluster_size() * words_per_entry;
      const std::uint64_t wanted =
          divide_up(covered.end - cluster, geometry.cluster_size()) * words_per_entry;
      const std::uint64_t raw = word(l2_, table, index, wanted, table_words);
      const std::uint64_t bitmap = geometry.extended_l2() ? word(l2_, table, index + 1, 1, table_words) : 0;
      const L2Entry entry = decode_l2(raw, bitmap, geometry, image_.header().version, data_file);
      // Most of a large disk is unallocated.
      const bool nothing = entry.storage == Storage::None && !geometry.extended_l2();
      const std::uint64_t clusters = nothing ? repeats(l2_, index) : 1;
      const GuestRange part =
          intersect({at, covered.end}, {cluster, cluster + clusters * geometry.cluster_size()});
      require_valid(entry, cluster, part);
      if (nothing) {
        append(mappings, {part, entry.kind(0), Storage::None, {}, 0, 0});
      } else {
        map_cluster(entry, cluster, part, mappings);
      }
      at = part.end;
    }
  }
  return at;
}

}  // namespace qchain
