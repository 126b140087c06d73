// What an NbdExport and its readers share. Only their sources include it.
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

/// How often a request is tried that the server fails, on a connection that lives: reads and block status
/// alike.
inline constexpr unsigned kMaxAttempts = 4;
/// How often in a row a connection may be lost, without any progress.
inline constexpr unsigned kMaxLosses = 4;

struct NbdExportState {
  using Clock = std::chrono::steady_clock;
  using Connection = std::unique_ptr<NbdConnection>;

  NbdExportState(const NbdTarget& nbd_target, const Changes& changes);

  /// A connection in place of a lost one. Throws Error, at once where others have tried for too long.
  Connection reconnect();
  /// A connection for one more reader; null where no more can be had.
  Connection connect_further(std::chrono::milliseconds timeout);

  /// The control connection is dead. Throws Error: Io where qchain gave up, or the server is not there any
  /// more; Inconclusive where it answers again, and can be another job. `what` failed.
  [[noreturn]] void throw_lost(const std::string& what);

  /// Asks the control connection, which has to be locked. The answer covers a beginning of `range`.
  std::vector<ExportStatus> ask(const GuestRange& range);
  /// The same in the server's blocks. A block that the answer ends in is data, and may have changed.
  std::vector<ExportStatus> ask_in_blocks(const GuestRange& range);

  const NbdTarget target;
  std::optional<ContextChoice> choice;
  NbdConnection control;
  std::mutex control_in_use;
  std::uint64_t status_length = 0;  // how much to ask about at a time
  std::atomic<bool> has_reader{false};
  std::atomic<Clock::duration> last_read{};
  std::atomic<std::uint64_t> failed_requests{0};  // and recovered
  std::atomic<unsigned> reconnects{0};

 private:
  // Connections are made one after another, and in as few round trips as possible (no contexts are listed).
  // QEMU 7.2 can hang for good when the end of a backup job meets many negotiations. Nothing else is locked
  // while this is held.
  std::mutex connecting_;
  bool no_more_connections_ = false;
  std::optional<Clock::time_point> unreachable_since_;
};

}  // namespace qchain
