// What an NbdExport and its readers share. Internal to them.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "extent/nbd_connection.h"
#include "extent/nbd_status.h"

namespace qchain {

/// How often a request that fails is tried on a live connection: reads and block status alike.
inline constexpr unsigned kMaxAttempts = 4;
/// How often in a row a connection may be lost without any progress.
inline constexpr unsigned kMaxLosses = 4;

struct NbdExportState {
  using Clock = std::chrono::steady_clock;
  using Connection = std::unique_ptr<NbdConnection>;

  NbdExportState(const NbdTarget& nbd_target, const Changes& changes);

  /// A connection in place of a lost one. Throws Error: immediately if the server has been unreachable for
  /// too long.
  Connection reconnect();
  /// A connection for one more reader; null if no more are available.
  Connection connect_further(std::chrono::milliseconds timeout);

  /// For a dead control connection: `what` failed. Throws Error: Io if the server timed out or cannot be
  /// reached any more; Inconclusive if it answers again, since it may serve another job.
  [[noreturn]] void throw_lost(const std::string& what);

  /// The block status on the control connection, which has to be locked. Begins at range.begin; may end
  /// before range.end.
  std::vector<ExportStatus> query(const GuestRange& range);
  /// The same in whole blocks of the server. A block that the answer covers only in part is dirty data.
  std::vector<ExportStatus> query_blocks(const GuestRange& range);

  const NbdTarget target;
  std::optional<ContextChoice> choice;
  NbdConnection control;
  std::mutex control_in_use;
  std::uint64_t status_length = 0;  // how many bytes to query at a time
  std::atomic<bool> has_reader{false};
  std::atomic<Clock::duration> last_read{};
  std::atomic<std::uint64_t> failed_requests{0};  // and recovered
  std::atomic<unsigned> reconnects{0};

 private:
  // Connections are made one after another, and in as few round trips as possible (no contexts are listed):
  // QEMU 7.2 can hang forever if a backup job ends during many negotiations. No other lock is taken while
  // this one is held.
  std::mutex connecting_;
  bool no_more_connections_ = false;
  std::optional<Clock::time_point> unreachable_since_;
};

}  // namespace qchain
