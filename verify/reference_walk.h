#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "extent/range.h"
#include "qcow2/entry.h"
#include "qcow2/image.h"
#include "verify/entry_checker.h"
#include "verify/inventory.h"
#include "verify/reference_count.h"

namespace qchain {

/// A referenced part of the file. It starts inside the file; it may end past the end of the file.
struct Reference {
  Structure structure = Structure::Data;
  HostOffset host;
  std::uint64_t length = 0;      ///< In bytes; not 0.
  std::uint32_t references = 1;  ///< The number of references.
  CopiedBit copied = CopiedBit::Meaningless;
  HostOffset pointer;  ///< The location of the pointer to it.
  GuestRange guest;    ///< The range of the disk that it maps; empty: none.
};
using ReferenceSink = std::function<void(const Reference&)>;

/// An L2 table and its users.
struct TableUse {
  HostOffset table;
  GuestRange visible;  ///< For the first user; the active disk comes before snapshots.
  std::uint32_t references = 1;
  bool active = false;
};

/// Walks all references of an image except those of refcount blocks; can be run repeatedly. Each L2 table is
/// read once, in file order, however many L1 entries share it: snapshots cost little, and the work is bounded
/// by the size of the file.
class ReferenceWalk {
 public:
  /// The image has to outlive the walk.
  ReferenceWalk(const Image& image, std::vector<Region> regions);

  /// Calls `sink` with each reference. Passes each L1 and L2 entry to `checker`, and adds problems of bitmap
  /// tables to `findings`, unless they are nullptr. Throws Error (Io).
  void run(const ReferenceSink& sink, EntryChecker* checker, FindingList* findings);

 private:
  class TableList;

  void walk_bitmap_table(const Region& region, const ReferenceSink& sink, FindingList* findings);
  void walk_l1(const Region& region, const ReferenceSink* sink, EntryChecker* checker, TableList& tables);
  void walk_l2(const std::vector<TableUse>& tables, const ReferenceSink& sink, EntryChecker* checker);
  void walk_table(const TableUse& use, std::span<const std::byte> bytes, const ReferenceSink& sink,
                  EntryChecker* checker);
  void visit(const TableUse& use, std::uint64_t index, std::uint64_t raw, std::uint64_t bitmap,
             const ReferenceSink& sink, EntryChecker* checker) const;
  /// Calls `visit(index, word)` for each nonzero word of a table.
  template <class Visit>
  void for_words(HostOffset table, std::uint64_t words, Visit&& visit);

  const Image& image_;
  const Geometry geometry_;
  const std::vector<Region> regions_;
  const bool data_file_;
  std::vector<std::byte> buffer_;
};

}  // namespace qchain
