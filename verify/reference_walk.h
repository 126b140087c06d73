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

/// A part of the file that something points to. It begins inside the file; its end may be past it.
struct Reference {
  Structure structure = Structure::Data;
  HostOffset host;
  std::uint64_t length = 0;      ///< Bytes, not 0.
  std::uint32_t references = 1;  ///< How many times.
  CopiedBit copied = CopiedBit::Meaningless;
  HostOffset pointer;  ///< What points to it.
  GuestRange guest;    ///< The part of the disk that it is for; empty: none.
};
using ReferenceSink = std::function<void(const Reference&)>;

/// Where an L2 table is, and by whom it is used.
struct TableUse {
  HostOffset table;
  GuestRange visible;  ///< By the first user, the active disk before any snapshot.
  std::uint32_t references = 1;
  bool active = false;
};

/// Goes through all references of an image but those of refcounts, as often as it is asked to. Each
/// L2 table is read once, in the order of the file, however many L1 entries share it: snapshots
/// cost little, and an image that claims one table a million times costs as much as the file is
/// long.
class ReferenceWalk {
 public:
  /// The image has to outlive the walk.
  ReferenceWalk(const Image& image, std::vector<Region> regions);

  /// Calls `sink` with each reference. `checker`, where there is one, is shown each entry of L1 and
  /// L2 tables; what is wrong with bitmap tables goes to `findings`. Throws Error (Io).
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
  /// Calls `visit(index, word)` with each word of a table that is not 0.
  template <class Visit>
  void for_words(HostOffset table, std::uint64_t words, Visit&& visit);

  const Image& image_;
  const Geometry geometry_;
  const std::vector<Region> regions_;
  const bool data_file_;
  std::vector<std::byte> buffer_;
};

}  // namespace qchain
