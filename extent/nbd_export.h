#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "extent/block_device.h"
#include "extent/nbd_session.h"
#include "extent/nbd_status.h"

namespace qchain {

/// Errors that were recovered from.
struct Recovered {
  std::uint64_t failed_requests = 0;  ///< Reads and block status requests that failed, and later succeeded.
  unsigned reconnects = 0;            ///< Connections that were lost and re-established.
};

struct NbdExportState;

/// A live NBD export.
///
/// The first connection is the control connection: it stays open as long as the export is used, so that
/// confirm() can verify that the export was not replaced in between. Readers have connections of their own,
/// as far as the server allows; they reconnect after a loss, and narrow a failed read down to the bytes that
/// cannot be read.
class NbdExport : public BlockDevice {
 public:
  /// Throws Error: Io if the server or the export cannot be reached; Usage if the bitmap is not on offer, or
  /// several are and none was named.
  NbdExport(const NbdTarget& target, const Changes& changes);
  ~NbdExport() override;

  std::string name() const override;
  std::uint64_t size() const override;
  /// Inherit where nothing changed, else Zero or Data.
  Extents extents(const GuestRange& range) override;
  std::unique_ptr<Reader> open_reader() override;

  /// How many readers keep the server busy: the higher its latency, the more, up to kMaxWorkers. Reads the
  /// first sector to measure it. Throws Error.
  unsigned useful_readers();

  /// A reader on the control connection, which does not count as one of open_reader(): for few bytes, such
  /// as samples.
  std::unique_ptr<Reader> control_reader();

  /// As extents(), with zero and dirty as separate flags.
  std::vector<ExportStatus> status(const GuestRange& range);
  /// The dirty bitmaps on offer, without the prefix qemu:dirty-bitmap.
  const std::vector<std::string>& offered_bitmaps() const;
  /// The bitmap in use; empty if none is.
  const std::string& bitmap() const;
  /// Whether the server offers base:allocation; if not, everything is read.
  bool has_allocation() const;

  /// Whether the server forbids writing through this export.
  bool is_read_only() const;
  /// The export's name, decoded from the URI.
  std::string export_name() const;
  Recovered recovered() const;

  /// Throws Error unless the export is still the one that was opened: Inconclusive if the control connection
  /// is lost, Io if there is no answer within the time-out. To be called after the last read and before the
  /// result is published.
  void confirm();

 private:
  std::unique_ptr<NbdExportState> state_;
};

/// Whether a name is an NBD URI rather than a path.
bool is_nbd_uri(const std::string& name);

}  // namespace qchain
