#pragma once

#include <memory>
#include <string>
#include <vector>

#include "extent/block_device.h"
#include "extent/nbd_connection.h"

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

struct NbdExportState;

/// A live NBD export.
///
/// The first connection is the witness: it stays open as long as the export is used, so that confirm()
/// can tell that the server never changed in between. Readers have connections of their own, as far as
/// the server allows; they reconnect after a loss, and narrow a failed read down to the bytes that
/// cannot be read.
class NbdExport : public BlockDevice {
 public:
  /// Throws Error: Io where the server or the export is not there; Usage where the bitmap is not on
  /// offer, or one of several has to be named.
  NbdExport(const NbdTarget& target, const Changes& changes);
  ~NbdExport() override;

  std::string name() const override;
  std::uint64_t size() const override;
  /// Inherit where nothing changed, else Zero or Data.
  Extents extents(const GuestRange& range) override;
  std::unique_ptr<Reader> open_reader() override;

  /// How many readers keep the server busy: more of them, up to kMaxWorkers, the longer it takes to answer.
  /// Reads its first sector to find out. Throws Error.
  unsigned useful_readers();

  /// A reader on the witness connection, beside those of open_reader(): for the few bytes that help to
  /// decide what the extents are.
  std::unique_ptr<Reader> witness_reader();

  /// As extents(), with zero and dirty apart.
  std::vector<ExportStatus> status(const GuestRange& range);
  /// The dirty bitmaps on offer, without their prefix.
  const std::vector<std::string>& offered_bitmaps() const;
  /// The bitmap in use; empty where none is.
  const std::string& bitmap() const;
  bool is_read_only() const;
  std::string export_name() const;
  /// Whether the server can tell zeros from data; where it cannot, everything is read.
  bool has_allocation() const;

  /// Throws Error (Inconclusive) unless the export is still the one that was opened. Called after the
  /// last read and before the result is published.
  void confirm();

 private:
  std::unique_ptr<NbdExportState> state_;
};

/// Whether a name is a URI of a live export, rather than a file.
bool is_nbd_uri(const std::string& name);

}  // namespace qchain
