// What the meta contexts of a live export mean: which to ask for, and what their answers say together.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "extent/nbd_reply.h"
#include "extent/range.h"

namespace qchain {

/// What tells an increment's changes from what it inherits.
struct Changes {
  enum class Source {
    None,             ///< Everything counts as changed: a full image.
    DirtyBitmap,      ///< qemu:dirty-bitmap:NAME.
    AllocationDepth,  ///< qemu:allocation-depth: what the active layer holds.
  };
  Source source = Source::None;
  /// The bitmap's name; empty for the only one on offer.
  std::string bitmap;
};

/// What a live export says of a range.
struct ExportStatus {
  GuestRange range;
  bool zero = false;   ///< Reads as zeros: the server said so twice.
  bool dirty = false;  ///< Changed, by the source of changes; true where there is none.

  friend bool operator==(const ExportStatus&, const ExportStatus&) = default;
};

/// The meta contexts that are asked for.
struct ContextChoice {
  Changes::Source source = Changes::Source::None;
  std::vector<std::string> bitmaps;  ///< On offer, without their prefix.
  std::string bitmap;                ///< In use; empty where none is.
  std::vector<std::string> contexts;

  /// Throws Error (Usage) where the source of changes is not on offer, or one of several has to be named.
  ContextChoice(const std::string& uri, const Changes& changes, const std::vector<std::string>& offered);
  /// Whether the server can tell zeros from data.
  bool has_allocation() const;
};

/// The answers of all contexts of `choice`, cut at each other's borders, as far as all of them reach.
std::vector<ExportStatus> merged_status(const ContextChoice& choice,
                                        const std::vector<std::vector<ContextExtent>>& answers,
                                        GuestOffset begin);
/// What two answers to one question agree on: zero where both say so, dirty where either does.
std::vector<ExportStatus> agreed_status(const std::vector<ExportStatus>& first,
                                        const std::vector<ExportStatus>& second);
/// The parts inside `range`.
std::vector<ExportStatus> clipped_status(const std::vector<ExportStatus>& list, const GuestRange& range);

}  // namespace qchain
