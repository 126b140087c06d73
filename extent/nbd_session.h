// One connection to an NBD server, from the handshake to the commands: libnbd with time limits.
// nbd_session.cc is the only source that includes libnbd.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "extent/error.h"
#include "extent/nbd_reply.h"
#include "extent/range.h"
#include "extent/time_limit.h"

struct nbd_handle;

namespace qchain {

/// How a connection is made.
struct NbdTarget {
  std::string uri;
  /// A directory with ca-cert.pem (and a client certificate), or a PSK file: for nbds URIs.
  std::string tls_certificates;
  std::string tls_psk_file;
  /// How long a server may take for one answer; after that the connection is dead.
  std::chrono::milliseconds timeout{30000};
  /// The same for each step of connecting, if it is shorter.
  std::chrono::milliseconds connect_timeout{30000};
  /// Whether zeros are written with NBD_CMD_FLAG_NO_HOLE.
  bool keep_space = false;
  unsigned requests_in_flight = 16;
  std::uint64_t request_size = std::uint64_t{256} << 10;
};

/// Given the meta contexts that a server offers, returns those to request; may throw. If empty, no contexts
/// are listed or requested, which makes the handshake shorter.
using ContextChooser = std::function<std::vector<std::string>(const std::vector<std::string>&)>;

/// What the server advertises for the export.
struct NbdFeatures {
  std::uint64_t size = 0;
  std::uint64_t minimum_block = 1;    ///< The smallest unit that can be read or written.
  std::uint64_t maximum_request = 0;  ///< 0: not advertised.
  bool multi_conn = false;
  bool df = false;
  bool structured = false;
  bool read_only = false;
  bool flush = false;
  bool zero = false;
  bool fast_zero = false;
};

class NbdSession {
 public:
  /// The state of a command.
  struct Completion {
    bool done = false;
    int error_number = 0;
    std::string message;  // of a failure
  };
  using Cookie = std::int64_t;

  /// Connects and opens the export. Throws Error: Usage for a malformed URI; Io if the server or the export
  /// cannot be reached.
  explicit NbdSession(const NbdTarget& target, const ContextChooser& choose = {});
  ~NbdSession();
  NbdSession(const NbdSession&) = delete;
  NbdSession& operator=(const NbdSession&) = delete;

  const std::string& uri() const noexcept { return target_.uri; }
  const NbdFeatures& features() const noexcept { return features_; }
  /// Decoded from the URI.
  std::string export_name() const;
  bool has_context(const std::string& context) const;

  /// Whether the connection was lost, timed out or was abandoned. It cannot be used again.
  bool is_dead() const;
  /// Whether it is dead because the server exceeded the time-out.
  bool timed_out() const noexcept { return end_ == End::TimedOut; }
  /// Why it is dead, in words.
  std::string reason() const;
  /// Makes it dead, because commands in flight refer to buffers that are about to be freed.
  void abandon() noexcept {
    if (end_ == End::None) end_ = End::Abandoned;
  }

  /// From now on, the server has `times` times the time-out for an answer.
  void expect_answer(int times = 1) { limit_.renew(times * target_.timeout); }
  /// Waits for one event of the connection; false if it timed out or was lost. Throws on a cancellation.
  bool wait();

  /// Each starts a command. Buffers must stay valid until it is complete or the session is dead. Throws Error
  /// (Io) if libnbd refuses it; returns -1 if the connection is dead.
  Cookie start_read(GuestOffset begin, std::span<std::byte> into, const std::shared_ptr<ReadReply>& reply);
  Cookie start_status(const GuestRange& range, const std::shared_ptr<StatusReply>& reply);
  Cookie start_write(GuestOffset begin, std::span<const std::byte> bytes);
  enum class ZeroSpeed { Fast, Any };
  Cookie start_zero(const GuestRange& range, ZeroSpeed speed);
  Cookie start_flush();
  /// Commands are never retired by a callback: libnbd detects bytes missing from a structured reply only when
  /// it is asked here.
  Completion completion(Cookie cookie);

 private:
  struct Close {
    void operator()(nbd_handle* handle) const noexcept;
  };
  enum class End { None, TimedOut, Abandoned };
  class Watch;
  struct OptionAnswer;

  void set_up_tls();
  void connect();
  std::vector<std::string> offered_contexts();
  std::vector<std::string> offered_exports();
  void open_export(const std::vector<std::string>& contexts);
  /// Throws Error if the export does not exist. A server may list contexts of an export that it does not
  /// have, or none.
  void require_export();
  [[noreturn]] void throw_refused(OptionAnswer answer);
  void throw_if_tls_is_required(const OptionAnswer& answer) const;
  std::string client_certificate_hint() const;
  void learn_features();
  void time_out();
  void begin_step();
  void wait_until_connected(const char* step);
  Cookie begun(Cookie cookie, const char* command, const GuestRange& range);
  static int watch_handshake(void* session, const char* context, const char* message) noexcept;

  const NbdTarget target_;
  std::unique_ptr<nbd_handle, Close> handle_;
  NbdFeatures features_;
  TimeLimit limit_;
  int socket_ = -1;  // -1 until known
  std::string loss_;
  std::atomic<End> end_ = End::None;
};

/// Of libnbd, "1.14.2".
std::string nbd_version();

}  // namespace qchain
