#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "extent/block_device.h"
#include "extent/nbd_session.h"
#include "extent/nbd_status.h"

namespace qchain {

/// What went wrong on the way, and was made good.
struct Recovered {
  std::uint64_t failed_requests = 0;  ///< Reads and block status requests that failed, and later succeeded.
  unsigned reconnects = 0;            ///< Connections that were lost and made again.
};

struct NbdExportState;

/// A live NBD export.
///
/// The first connection is the control connection: it stays open as long as the export is used, so that
/// confirm() can tell that the server never changed in between. Readers have connections of their own, as far
/// as the server allows; they reconnect after a loss, and narrow a failed read down to the bytes that
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

  /// A reader on the control connection, beside those of open_reader(): for the few bytes that help to
  /// decide what the extents are.
  std::unique_ptr<Reader> control_reader();

  /// As extents(), with zero and dirty apart.
  std::vector<ExportStatus> status(const GuestRange& range);
  /// The dirty bitmaps on offer, without their prefix.
  const std::vector<std::string>& offered_bitmaps() const;
  /// The bitmap in use; empty where none is.
  const std::string& bitmap() const;
  /// Whether the server can tell zeros from data; where it cannot, everything is read.
  bool has_allocation() const;

  /// Whether the server forbids writing through this export.
  bool is_read_only() const;
  /// The export's name, as the URI has it, decoded.
  std::string export_name() const;
  Recovered recovered() const;

  /// Throws Error unless the export is still the one that was opened: Inconclusive where the connection is
  /// lost, Io where there is no answer within the time-out. Called after the last read and before the result
  /// is published.
  void confirm();

 private:
  std::unique_ptr<NbdExportState> state_;
};

/// Whether a name is a URI of a live export, rather than a file.
bool is_nbd_uri(const std::string& name);

}  // namespace qchain
