#include "verify/reference_walk.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <span>
#include <utility>

#include "extent/cancellation.h"
#include "qcow2/bitmap.h"
#include "qcow2/format.h"

namespace qchain {

namespace {

constexpr std::uint64_t kWord = sizeof(std::uint64_t);
constexpr std::size_t kBufferBytes = std::size_t{1} << 20;

std::uint64_t word_at(const std::byte* bytes) { return decode_struct<Be64>(bytes); }

// The index of the next nonzero word from `index` on, or `words`. Most tables are mostly zeros.
std::size_t skip_zero_words(const std::byte* bytes, std::size_t index, std::size_t words) {
  constexpr std::size_t kStep = 8;
  std::array<std::uint64_t, kStep> block;
  for (; index + kStep <= words; index += kStep) {
    std::memcpy(block.data(), bytes + index * kWord, sizeof(block));
    if ((block[0] | block[1] | block[2] | block[3] | block[4] | block[5] | block[6] | block[7]) != 0) {
      break;
    }
  }
  while (index < words && word_at(bytes + index * kWord) == 0) ++index;
  return index;
}

}  // namespace

// The L2 tables that L1 entries point to, from some offset of the file on, sorted and without duplicates; up
// to kMax of them.
class ReferenceWalk::TableList {
 public:
  static constexpr std::size_t kMax = std::size_t{1} << 16;  // 3 MiB, twice that while they are collected

  explicit TableList(HostOffset from) : from_(from) {}

  void add(const TableUse& use) {
    if (use.table < from_ || use.table >= end_) return;
    uses_.push_back(use);
    if (uses_.size() >= 2 * kMax) compact();
  }

  const std::vector<TableUse>& finish() {
    compact();
    return uses_;
  }
  // The offset at which the next list starts.
  HostOffset end() const { return end_; }

  static constexpr HostOffset kNoEnd{std::numeric_limits<std::uint64_t>::max()};

 private:
  void compact() {
    // Stable, because the active tables were added first.
    std::ranges::stable_sort(uses_, {}, &TableUse::table);
    std::size_t kept = 0;
    for (const TableUse& use : uses_) {
      if (kept == 0 || uses_[kept - 1].table != use.table) {
        uses_[kept++] = use;
        continue;
      }
      TableUse& same = uses_[kept - 1];
      same.references += std::min(use.references, ~std::uint32_t{0} - same.references);
      if (same.visible.length() < use.visible.length() && !same.active) same.visible = use.visible;
    }
    uses_.resize(kept);
    if (kept > kMax) {
      end_ = uses_[kMax].table;
      uses_.resize(kMax);
    }
  }

  const HostOffset from_;
  HostOffset end_ = kNoEnd;
  std::vector<TableUse> uses_;
};

ReferenceWalk::ReferenceWalk(const Image& image, std::vector<Region> regions)
    : image_(image),
      geometry_(image.geometry()),
      regions_(std::move(regions)),
      data_file_(image.header().has_incompatible(kIncompatibleDataFile)),
      buffer_(std::max<std::size_t>(kBufferBytes, geometry_.cluster_size())) {}

template <class Visit>
void ReferenceWalk::for_words(HostOffset table, std::uint64_t words, Visit&& visit) {
  for (std::uint64_t done = 0; done < words;) {
    throw_if_cancelled();
    const std::uint64_t wanted = std::min<std::uint64_t>(words - done, buffer_.size() / kWord);
    const std::size_t held =
        image_.file().read_at_most(table + done * kWord, std::span(buffer_).first(wanted * kWord)) / kWord;
    for (std::size_t i = skip_zero_words(buffer_.data(), 0, held); i < held;
         i = skip_zero_words(buffer_.data(), i + 1, held)) {
      visit(done + i, word_at(buffer_.data() + i * kWord));
    }
    done += held;
    if (held < wanted) return;  // the end of the file; reported for the pointer to it
  }
}

void ReferenceWalk::run(const ReferenceSink& sink, EntryChecker* checker, FindingList* findings) {
  for (const Region& region : regions_) {
    sink({region.structure,
          region.at,
          region.length,
          region.references,
          CopiedBit::Meaningless,
          region.pointer,
          {}});
    if (region.structure == Structure::BitmapTable) walk_bitmap_table(region, sink, findings);
  }
  const ReferenceSink* to_tables = &sink;
  for (HostOffset from(0); from != TableList::kNoEnd;) {
    TableList tables(from);
    for (const Region& region : regions_) {
      if (region.is_l1()) walk_l1(region, to_tables, checker, tables);
    }
    walk_l2(tables.finish(), sink, checker);
    from = tables.end();
    // L1 entries are checked once, even if it takes several lists.
    to_tables = nullptr;
  }
}

void ReferenceWalk::walk_bitmap_table(const Region& region, const ReferenceSink& sink,
                                      FindingList* findings) {
  for_words(region.at, region.length / kWord, [&](std::uint64_t index, std::uint64_t raw) {
    const BitmapTableEntry entry = decode_bitmap_table_entry(raw);
    const HostOffset at = region.at + index * kWord;
    std::string violation = format_violation(entry, geometry_);
    const bool countable = entry.data != HostOffset(0) &&
                           geometry_.offset_in_cluster(entry.data.bytes()) == 0 &&
                           entry.data < HostOffset(image_.file_size());
    if (violation.empty() && entry.data != HostOffset(0) &&
        (!countable || geometry_.cluster_size() > image_.file_size() - entry.data.bytes())) {
      violation = "its bitmap data cluster ends past the end of the file";
    }
    if (!violation.empty() && findings != nullptr) {
      findings->add(
          {Flaw::BadBitmap, Severity::Harmless, at, "bitmap table entry: " + violation, raw, {}, {}});
    }
    if (!countable) return;
    sink({Structure::BitmapBits,
          entry.data,
          geometry_.cluster_size(),
          region.references,
          CopiedBit::Meaningless,
          at,
          {}});
  });
}

void ReferenceWalk::walk_l1(const Region& region, const ReferenceSink* sink, EntryChecker* checker,
                            TableList& tables) {
  const bool active = region.structure == Structure::L1Table;
  const std::uint64_t coverage = geometry_.l2_coverage();
  for_words(region.at, region.length / kWord, [&](std::uint64_t index, std::uint64_t raw) {
    const L1Entry entry = decode_l1(raw);
    const HostOffset at = region.at + index * kWord;
    const std::uint64_t begin = index * coverage;
    const std::uint64_t end = std::max(begin, std::min(begin + coverage, region.visible));
    const GuestRange visible{GuestOffset(begin), GuestOffset(end)};
    if (sink != nullptr && checker != nullptr) checker->check(entry, {at, raw, visible, active});
    const bool countable = entry.table != HostOffset(0) &&
                           geometry_.offset_in_cluster(entry.table.bytes()) == 0 &&
                           entry.table < HostOffset(image_.file_size());
    if (!countable) return;
    if (sink != nullptr) {
      const CopiedBit copied = !active        ? CopiedBit::Meaningless
                               : entry.copied ? CopiedBit::Set
                                              : CopiedBit::Clear;
      (*sink)({Structure::L2Table, entry.table, geometry_.cluster_size(), region.references, copied, at,
               visible});
    }
    tables.add({entry.table, visible, region.references, active});
  });
}

void ReferenceWalk::walk_l2(const std::vector<TableUse>& tables, const ReferenceSink& sink,
                            EntryChecker* checker) {
  const std::uint64_t cluster_size = geometry_.cluster_size();
  const std::size_t most = std::max<std::size_t>(buffer_.size() / cluster_size, 1);
  for (std::size_t i = 0; i < tables.size();) {
    throw_if_cancelled();
    std::size_t count = 1;  // adjacent tables are read at once
    while (count < most && i + count < tables.size() &&
           tables[i + count].table - tables[i].table == count * cluster_size) {
      ++count;
    }
    const std::size_t held =
        image_.file().read_at_most(tables[i].table, std::span(buffer_).first(count * cluster_size));
    const std::span<const std::byte> bytes = std::span(buffer_).first(held);
    for (std::size_t k = 0; k < count && k * cluster_size < held; ++k) {
      const std::span<const std::byte> rest = bytes.subspan(k * cluster_size);
      walk_table(tables[i + k], rest.first(std::min<std::size_t>(rest.size(), cluster_size)), sink, checker);
    }
    i += count;
  }
}

void ReferenceWalk::walk_table(const TableUse& use, std::span<const std::byte> bytes,
                               const ReferenceSink& sink, EntryChecker* checker) {
  const std::size_t step = geometry_.l2_entry_bytes() / kWord;
  const std::size_t words = bytes.size() / geometry_.l2_entry_bytes() * step;
  for (std::size_t i = skip_zero_words(bytes.data(), 0, words); i < words;
       i = skip_zero_words(bytes.data(), i + step, words)) {
    i -= i % step;  // the second word of an entry may be the nonzero one
    const std::uint64_t raw = word_at(bytes.data() + i * kWord);
    const std::uint64_t bitmap = step == 2 ? word_at(bytes.data() + (i + 1) * kWord) : 0;
    visit(use, i / step, raw, bitmap, sink, checker);
  }
}

void ReferenceWalk::visit(const TableUse& use, std::uint64_t index, std::uint64_t raw, std::uint64_t bitmap,
                          const ReferenceSink& sink, EntryChecker* checker) const {
  const L2Entry entry = decode_l2(raw, bitmap, geometry_, image_.header().version, data_file_);
  const HostOffset at = use.table + index * geometry_.l2_entry_bytes();
  const std::uint64_t begin = use.visible.begin.bytes() + index * geometry_.cluster_size();
  const std::uint64_t end =
      std::max(begin, std::min(begin + geometry_.cluster_size(), use.visible.end.bytes()));
  const GuestRange visible{GuestOffset(begin), GuestOffset(end)};
  if (checker != nullptr) checker->check(entry, {at, raw, visible, use.active});
  if (entry.storage == Storage::None || data_file_ || entry.host >= HostOffset(image_.file_size())) {
    return;
  }
  Reference reference{Structure::Compressed,
                      entry.host,
                      entry.compressed_bytes,
                      use.references,
                      CopiedBit::Meaningless,
                      at,
                      visible};
  if (entry.storage == Storage::Plain) {
    if (geometry_.offset_in_cluster(entry.host.bytes()) != 0) return;
    reference.structure = Structure::Data;
    reference.length = geometry_.cluster_size();
    if (use.active) reference.copied = entry.copied ? CopiedBit::Set : CopiedBit::Clear;
  }
  sink(reference);
}

}  // namespace qchain
