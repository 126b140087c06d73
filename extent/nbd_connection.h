// One connection to an NBD server, for batches of requests. Internal to NbdExport, NbdReader and NbdWriter.
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

/// A read that failed, and why.
struct FailedRead {
  ReadRequest request;
  int error_number = 0;
  const char* reason = nullptr;  ///< More about it, if the reply itself was invalid.
};

class NbdConnection {
 public:
  /// Connects and negotiates. Throws Error as NbdSession does.
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
  /// Whether the connection was lost, timed out or was abandoned. It cannot be used again.
  bool is_dead() const { return session_.is_dead(); }
  /// Whether it is dead because the server exceeded the time-out.
  bool timed_out() const noexcept { return session_.timed_out(); }
  /// Why it is dead.
  std::string reason() const { return session_.reason(); }

  /// Reads a batch, many requests in flight at a time. Returns the parts of the batch that could not be read;
  /// after a loss of the connection, all that were not complete. Throws only on a cancellation, and if
  /// libnbd refuses a request.
  std::vector<FailedRead> read(std::span<const ReadRequest> batch);

  /// The block status of `range` (at most 4 GiB - 1) for each of `contexts`: extents from range.begin on,
  /// at least one, none of zero length, clipped to the range. Contexts may cover different lengths. Throws
  /// Error (Io).
  std::vector<std::vector<ContextExtent>> block_status(const GuestRange& range,
                                                       const std::vector<std::string>& contexts);

  /// Writes a batch, many requests in flight at a time; each begins at a multiple of minimum_block(). A block
  /// that the last bytes of a request fill only in part is read and written back whole. Zeros are sent as
  /// NBD_CMD_WRITE_ZEROES if the server supports it, never as a trim. Throws Error (Io), naming what could
  /// not be written; nothing is in flight then, or the connection is dead.
  void write(std::span<const WriteRequest> batch);
  /// Makes durable what was written, if the server supports flush. Throws Error (Io).
  void flush();

 private:
  struct InFlight;
  struct Writing;
  /// How zeros are written: each is the fallback for the one before.
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
