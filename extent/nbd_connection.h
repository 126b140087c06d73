// One connection to an NBD server, for batches of requests. Only the NBD sources of this folder use it.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "extent/block_device.h"
#include "extent/copy_target.h"
#include "extent/nbd_session.h"

namespace qchain {

/// A request that failed, and why.
struct FailedRead {
  ReadRequest request;
  int error_number = 0;
  const char* complaint = nullptr;  ///< More about it, where the reply was wrong in itself.
};

class NbdConnection {
 public:
  /// Connects and negotiates, as NbdSession does. Throws Error: Io where the server or the export is not
  /// there.
  explicit NbdConnection(const NbdTarget& target, const ContextChooser& choose = {});
  ~NbdConnection();
  NbdConnection(const NbdConnection&) = delete;
  NbdConnection& operator=(const NbdConnection&) = delete;

  std::uint64_t size() const noexcept { return session_.features().size; }
  bool can_multi_conn() const noexcept { return session_.features().multi_conn; }
  bool is_read_only() const noexcept { return session_.features().read_only; }
  /// The smallest unit that can be read or written: at least 1.
  std::uint64_t minimum_block() const noexcept { return session_.features().minimum_block; }
  std::string export_name() const { return session_.export_name(); }
  /// Whether the server agreed to `context`.
  bool has_context(const std::string& context) const { return session_.has_context(context); }
  /// Whether the connection was lost or given up. It does not come back.
  bool is_dead() const { return session_.is_dead(); }
  /// Whether it is dead because the server took longer than the time-out.
  bool gave_up() const noexcept { return session_.gave_up(); }
  /// Why it is dead.
  std::string reason() const { return session_.reason(); }

  /// Reads a batch, many requests in flight at a time. Returns what could not be read: parts of the
  /// batch; after a loss of the connection, all that was not complete. Throws only on an interrupt and
  /// where libnbd refuses a request.
  std::vector<FailedRead> read(std::span<const ReadRequest> batch);

  /// What each of `contexts` says of `range` (at most 4 GiB - 1) from its beginning on: never empty,
  /// never zero-length, clipped to the range, each perhaps of another total length. Throws Error (Io).
  std::vector<std::vector<ContextExtent>> block_status(const GuestRange& range,
                                                       const std::vector<std::string>& contexts);

  /// Writes a batch, many requests in flight at a time; each begins at a multiple of minimum_block(). A block
  /// that the last bytes of a request fill only in part is read and written back whole. Zeros are left to the
  /// server where it can write them, and are never trimmed away. Throws Error (Io), naming what could not be
  /// written; nothing is in flight then, or the connection is dead.
  void write(std::span<const WriteRequest> batch);
  /// Makes durable what was written, where the server knows how. Throws Error (Io).
  void flush();

 private:
  struct InFlight;
  struct Writing;
  /// How zeros are written: each way is used where the one before was refused.
  enum class Zeroing { Fast, Slow, Plain };

  std::vector<ReadRequest> requests_for(std::span<const ReadRequest> batch) const;
  std::vector<FailedRead> read_all(std::span<const ReadRequest> batch);
  bool is_aligned(const ReadRequest& request) const;
  bool start(const ReadRequest& request, std::vector<InFlight>& in_flight);
  void retire(std::vector<InFlight>& in_flight, std::vector<FailedRead>& failed);
  std::optional<FailedRead> read_unaligned(const ReadRequest& request);
  /// Waits for one command; throws Error (Io), saying `what` it was, where it fails.
  void complete(NbdSession::Cookie cookie, const std::string& what);
  void write_unaligned(const WriteRequest& request);
  void write_blocks(std::deque<WriteRequest> todo);
  std::optional<Writing> write_all(std::deque<WriteRequest> todo);
  WriteRequest take_step(std::deque<WriteRequest>& todo) const;
  std::optional<Writing> start(const WriteRequest& request);
  void retire(std::vector<Writing>& in_flight, std::deque<WriteRequest>& todo,
              std::optional<Writing>& failed);
  [[noreturn]] void throw_lost_while_writing(const GuestRange& range) const;

  const unsigned requests_in_flight_;
  NbdSession session_;
  std::uint64_t request_size_ = 0;
  Zeroing zeroing_ = Zeroing::Plain;
};

}  // namespace qchain
