// The meta contexts of a live export: which to request, and how their answers are combined.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "extent/nbd_reply.h"
#include "extent/range.h"

namespace qchain {

/// By which an increment knows what has changed.
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

/// The status of a range of a live export.
struct ExportStatus {
  GuestRange range;
  bool zero = false;   ///< Reads as zeros: the server has reported it twice.
  bool dirty = false;  ///< Changed, according to the source of changes; true if there is none.

  friend bool operator==(const ExportStatus&, const ExportStatus&) = default;
};

/// The meta contexts that are requested.
struct ContextChoice {
  Changes::Source source = Changes::Source::None;
  std::vector<std::string> bitmaps;  ///< On offer, without their prefix.
  std::string bitmap;                ///< In use; empty if none is.
  std::vector<std::string> contexts;

  /// Throws Error (Usage) if the source of changes is not on offer, or several are and none was named.
  ContextChoice(const std::string& uri, const Changes& changes, const std::vector<std::string>& offered);
  /// Whether the server offers base:allocation, so that zeros need not be read.
  bool has_allocation() const;
};

/// The answers of all contexts of `choice`, cut at each other's boundaries, as far as all of them reach.
std::vector<ExportStatus> merged_status(const ContextChoice& choice,
                                        const std::vector<std::vector<ContextExtent>>& answers,
                                        GuestOffset begin);
/// Two answers to one query combined: zero where both say so, dirty where either does.
std::vector<ExportStatus> agreed_status(const std::vector<ExportStatus>& first,
                                        const std::vector<ExportStatus>& second);
/// The parts inside `range`.
std::vector<ExportStatus> clipped_status(const std::vector<ExportStatus>& list, const GuestRange& range);

}  // namespace qchain
