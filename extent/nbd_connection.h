// One connection to an NBD server: libnbd, with time-outs of our own, and with distrust of what the
// server says. Only nbd_export.cc and nbd_writer.cc use it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "extent/block_device.h"
#include "extent/copy_target.h"
#include "extent/error.h"

struct nbd_handle;

namespace qchain {

/// The flags that one meta context gives to a range; for qemu:allocation-depth, the depth.
struct ContextExtent {
  std::uint64_t length = 0;
  std::uint32_t flags = 0;
};

/// How a connection is made.
struct NbdTarget {
  std::string uri;
  /// A directory with ca-cert.pem (and a client certificate), or a PSK file: for nbds URIs.
  std::string tls_certificates;
  std::string tls_psk_file;
  /// How long a server may take for one answer before it counts as gone.
  std::chrono::milliseconds timeout{30000};
  /// The same for each step of connecting, where that is shorter.
  std::chrono::milliseconds connect_timeout{30000};
  /// Whether the server is to keep the space of zeros that are written.
  bool keep_space = false;
  unsigned requests_in_flight = 16;
  std::uint64_t request_size = std::uint64_t{256} << 10;
};

/// A request that failed, and why.
struct FailedRead {
  ReadRequest request;
  int error_number = 0;
};

class NbdConnection {
 public:
  /// Connects and negotiates. `choose` is given the meta contexts that the server offers and returns
  /// those to ask for; it may throw. Throws Error: Io where the server or the export is not there.
  template <class Choose>
  NbdConnection(const NbdTarget& target, const Choose& choose) : NbdConnection(target) {
    const std::vector<std::string> offered = offered_contexts();
    std::vector<std::string> contexts;
    try {
      contexts = choose(offered);
    } catch (const Error&) {
      require_export();
      throw;
    }
    negotiate(contexts);
  }
  ~NbdConnection();
  NbdConnection(const NbdConnection&) = delete;
  NbdConnection& operator=(const NbdConnection&) = delete;

  std::uint64_t size() const noexcept { return size_; }
  bool can_multi_conn() const noexcept { return multi_conn_; }
  bool is_read_only() const noexcept { return read_only_; }
  /// The smallest unit that can be read or written: at least 1.
  std::uint64_t minimum_block() const noexcept { return minimum_block_; }
  /// Whether the server agreed to `context`.
  bool has_context(const std::string& context) const;
  /// Whether the connection was lost. It does not come back.
  bool is_dead() const;

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
  struct Close {
    void operator()(nbd_handle* handle) const noexcept;
  };
  struct InFlight;
  struct Writing;
  /// How zeros are written: each way serves where the one before was refused.
  enum class Zeroing { Fast, Slow, Plain };

  explicit NbdConnection(const NbdTarget& target);
  void set_up_tls();
  std::vector<std::string> offered_contexts();
  void negotiate(const std::vector<std::string>& contexts);
  void learn_limits();
  /// A server that knows no such export lists no contexts of it, or even some that suit nobody.
  void require_export();
  [[noreturn]] void throw_not_offered(int error_number) const;
  /// From now on, the server has the target's time-out for an answer.
  void expect_answer();
  /// Waits for the server once; false where its time is over, or it is gone.
  bool wait_for_server();
  void wait_until_connected(const char* step);
  std::vector<ReadRequest> requests_for(std::span<const ReadRequest> batch) const;
  bool start(const ReadRequest& request, std::vector<InFlight>& in_flight);
  void retire(std::vector<InFlight>& in_flight, std::vector<FailedRead>& failed);
  std::optional<FailedRead> read_unaligned(const ReadRequest& request);
  /// Waits for one command; throws Error (Io), saying `what` it was, where it fails.
  void complete(std::int64_t cookie, const std::string& what);
  void write_unaligned(const WriteRequest& request);
  void write_blocks(std::deque<WriteRequest> todo);
  WriteRequest take_step(std::deque<WriteRequest>& todo) const;
  Writing start(const WriteRequest& request);
  void retire(std::vector<Writing>& in_flight, std::deque<WriteRequest>& todo,
              std::optional<Writing>& failed);

  NbdTarget target_;
  std::unique_ptr<nbd_handle, Close> handle_;
  std::uint64_t size_ = 0;
  std::uint64_t minimum_block_ = 1;
  std::uint64_t request_size_ = 0;
  bool multi_conn_ = false;
  bool df_ = false;
  bool structured_ = false;
  bool read_only_ = false;
  bool flush_ = false;
  Zeroing zeroing_ = Zeroing::Plain;
  std::chrono::steady_clock::duration patience_{};  // how long the next answer may still take
  std::atomic<bool> silent_ = false;                // timed out: as good as dead
};

/// Of libnbd, "1.14.2".
std::string nbd_version();

}  // namespace qchain
