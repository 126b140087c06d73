#include "extent/nbd_session.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <libnbd.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <string_view>

#include "extent/cancellation.h"

namespace qchain {

namespace {

// libnbd's message for the last failed call of this thread, without the name of the function. It is gone
// after the next call.
std::string last_error() {
  const char* const message = nbd_get_error();
  if (message == nullptr) return "unknown error";
  const std::string_view all(message);
  const std::size_t colon = all.find(": ");
  const bool names_function = all.starts_with("nbd_") && colon != std::string_view::npos;
  return std::string(names_function ? all.substr(colon + 2) : all);
}

int last_errno() {
  const int number = nbd_get_errno();
  return number != 0 ? number : EIO;
}

constexpr std::size_t kMaxContexts = 1024;  // on offer; no server has that many bitmaps
constexpr std::size_t kMaxExports = 20;     // named in a message

// Callbacks run inside libnbd, which is C: no exception may leave them.

// Names that a server lists, up to a limit and one more.
struct NameList {
  std::size_t limit;
  std::vector<std::string> names;

  void add(const char* name) noexcept {
    try {
      if (names.size() <= limit) names.emplace_back(name);
    } catch (...) {  // out of memory: the name is left out
    }
  }
};

int add_context_name(void* list, const char* name) noexcept {
  static_cast<NameList*>(list)->add(name);
  return 0;
}

int add_export_name(void* list, const char* name, const char*) noexcept {
  static_cast<NameList*>(list)->add(name);
  return 0;
}

// Out of memory, the command fails.
template <class Work>
int noted(int* error, const Work& work) noexcept {
  try {
    work();
    return 0;
  } catch (...) {
    *error = ENOMEM;
    return -1;
  }
}

int note_chunk(void* reply, const void*, std::size_t count, std::uint64_t offset, unsigned kind,
               int* error) noexcept {
  ReadReply& read = **static_cast<std::shared_ptr<ReadReply>*>(reply);
  return noted(error, [&] {
    if (kind == LIBNBD_READ_HOLE) read.add_hole(offset, count);
    if (kind == LIBNBD_READ_DATA) read.add_data(offset, count);
  });
}

int note_extents(void* reply, const char* context, std::uint64_t, std::uint32_t* entries, std::size_t count,
                 int* error) noexcept {
  StatusReply& status = **static_cast<std::shared_ptr<StatusReply>*>(reply);
  return noted(error, [&] { status.add(context, {entries, count}); });
}

// libnbd may keep a callback longer than the caller needs the reply, so they share its ownership.
template <class Reply>
void drop_share(void* reply) noexcept {
  delete static_cast<std::shared_ptr<Reply>*>(reply);
}

bool starts_with_tls_scheme(const std::string& uri) {
  return uri.starts_with("nbds:") || uri.starts_with("nbds+");
}

}  // namespace

void NbdSession::Close::operator()(nbd_handle* handle) const noexcept { nbd_close(handle); }

// A server's answer to an option of the handshake.
struct NbdSession::OptionAnswer {
  int error_number = 0;
  std::string message;  // of the error
  static int note(void* answer, int* error) noexcept {
    auto& noted = *static_cast<OptionAnswer*>(answer);
    noted.error_number = *error;
    try {
      if (*error != 0) noted.message = last_error();
    } catch (...) {  // out of memory: the number alone
    }
    return 1;  // retires the option
  }
};

// While it lives, the time limit and cancellations apply inside libnbd too. libnbd processes a server that
// sends options without end in one call, in which no clock is checked; but it logs each step as a debug
// message.
class NbdSession::Watch {
 public:
  explicit Watch(NbdSession& session) : handle_(session.handle_.get()) {
    if (nbd_get_debug(handle_) > 0) return;  // LIBNBD_DEBUG=1: the user wants to see the messages
    nbd_set_debug_callback(handle_, nbd_debug_callback{watch_handshake, &session, nullptr});
    nbd_set_debug(handle_, true);
    set_ = true;
  }
  ~Watch() {
    if (!set_) return;
    nbd_set_debug(handle_, false);
    nbd_clear_debug_callback(handle_);
  }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

 private:
  nbd_handle* handle_;
  bool set_ = false;
};

int NbdSession::watch_handshake(void* session, const char*, const char*) noexcept {
  NbdSession& self = *static_cast<NbdSession*>(session);
  bool stop = self.limit_.is_over();
  try {
    throw_if_cancelled();
  } catch (...) {  // wait() throws it again
    stop = true;
  }
  // No function of libnbd may be called here. After a shutdown of its socket, libnbd returns by itself.
  if (stop && self.socket_ >= 0) shutdown(self.socket_, SHUT_RDWR);
  return 0;
}

NbdSession::NbdSession(const NbdTarget& target, const ContextChooser& choose)
    : target_(target), handle_(nbd_create()) {
  if (!handle_) throw Error(Outcome::Io, fmt::format("{}: {}", target.uri, last_error()));
  set_up_tls();
  nbd_set_pread_initialize(handle_.get(), false);  // ReadReply checks what a reply covers
  nbd_set_opt_mode(handle_.get(), true);
  const Watch watch(*this);
  connect();
  std::vector<std::string> contexts;
  if (choose) {
    const std::vector<std::string> offered = offered_contexts();
    try {
      contexts = choose(offered);
    } catch (const Error&) {
      require_export();
      throw;
    }
  }
  open_export(contexts);
  learn_features();
}

NbdSession::~NbdSession() {
  // Sends NBD_CMD_DISC; there is no answer to wait for.
  if (end_ == End::None && nbd_aio_is_ready(handle_.get()) > 0) nbd_aio_disconnect(handle_.get(), 0);
}

void NbdSession::set_up_tls() {
  nbd_handle* const handle = handle_.get();
  if (!starts_with_tls_scheme(target_.uri)) {
    if (!target_.tls_certificates.empty() || !target_.tls_psk_file.empty()) {
      throw Error(Outcome::Usage,
                  fmt::format("{}: TLS was requested, but the URI does not begin with nbds", target_.uri));
    }
    return;
  }
  if (nbd_supports_tls(handle) == 0) {
    throw Error(Outcome::Io, fmt::format("{}: this libnbd was built without TLS", target_.uri));
  }
  nbd_set_tls(handle, LIBNBD_TLS_REQUIRE);
  if (!target_.tls_psk_file.empty()) {
    nbd_set_tls_psk_file(handle, target_.tls_psk_file.c_str());
    return;
  }
  if (target_.tls_certificates.empty()) {
    throw Error(
        Outcome::Usage,
        fmt::format("{}: TLS needs a pre-shared key or certificates; without either the server cannot be "
                    "verified",
                    target_.uri),
        Remedy::GiveTlsCredentials);
  }
  // libnbd verifies the peer's name only over TCP, and does not verify the peer at all without a CA file.
  const std::string authority = target_.tls_certificates + "/ca-cert.pem";
  if (access(authority.c_str(), R_OK) != 0) {
    throw system_error(fmt::format("{}: cannot read the CA certificate to verify the server", authority),
                       errno);
  }
  if (!target_.uri.starts_with("nbds:")) {
    throw Error(Outcome::Usage,
                fmt::format("{}: there is no host name to check a certificate against on this transport; use "
                            "a pre-shared key",
                            target_.uri),
                Remedy::GiveTlsCredentials);
  }
  nbd_set_tls_certificates(handle, target_.tls_certificates.c_str());
  nbd_set_tls_verify_peer(handle, true);
}

void NbdSession::connect() {
  begin_step();
  if (nbd_aio_connect_uri(handle_.get(), target_.uri.c_str()) != 0) {
    if (nbd_get_errno() == EINVAL) {
      throw Error(Outcome::Usage, fmt::format("{}: malformed NBD URI: {}", target_.uri, last_error()));
    }
    loss_ = last_error();  // the failure may be in the handshake
    throw Error(Outcome::Io,
                fmt::format("{}: cannot connect: {}{}", target_.uri, loss_, client_certificate_hint()));
  }
  wait_until_connected("connect");
}

std::vector<std::string> NbdSession::offered_contexts() {
  NameList list{kMaxContexts, {}};
  nbd_handle* const handle = handle_.get();
  if (nbd_aio_is_negotiating(handle) <= 0) return {};  // an oldstyle server has none
  nbd_add_meta_context(handle, LIBNBD_CONTEXT_BASE_ALLOCATION);
  nbd_add_meta_context(handle, "qemu:");
  OptionAnswer answer;
  begin_step();
  nbd_aio_opt_list_meta_context(handle, nbd_context_callback{add_context_name, &list, nullptr},
                                nbd_completion_callback{OptionAnswer::note, &answer, nullptr});
  wait_until_connected("list meta contexts");
  nbd_clear_meta_contexts(handle);
  if (list.names.size() > list.limit) {
    throw Error(Outcome::Io,
                fmt::format("{}: the server lists more than {} meta contexts", target_.uri, kMaxContexts));
  }
  return std::move(list.names);
}

std::vector<std::string> NbdSession::offered_exports() {
  NameList list{kMaxExports, {}};
  OptionAnswer answer;
  if (nbd_aio_is_negotiating(handle_.get()) <= 0) return {};
  begin_step();
  nbd_aio_opt_list(handle_.get(), nbd_list_callback{add_export_name, &list, nullptr},
                   nbd_completion_callback{OptionAnswer::note, &answer, nullptr});
  wait_until_connected("list exports");
  return std::move(list.names);
}

void NbdSession::require_export() {
  if (nbd_aio_is_negotiating(handle_.get()) <= 0) return;
  OptionAnswer answer;
  begin_step();
  nbd_aio_opt_info(handle_.get(), nbd_completion_callback{OptionAnswer::note, &answer, nullptr});
  wait_until_connected("ask for the export");
  throw_if_tls_is_required(answer);
  if (answer.error_number == ENOENT) throw_refused(answer);
}

void NbdSession::open_export(const std::vector<std::string>& contexts) {
  nbd_handle* const handle = handle_.get();
  if (nbd_aio_is_negotiating(handle) > 0) {
    for (const std::string& context : contexts) nbd_add_meta_context(handle, context.c_str());
    OptionAnswer answer;
    begin_step();
    if (nbd_aio_opt_go(handle, nbd_completion_callback{OptionAnswer::note, &answer, nullptr}) != 0) {
      loss_ = last_error();
    }
    wait_until_connected("open the export");
    if (nbd_aio_is_ready(handle) <= 0) throw_refused(answer);
  }
  if (starts_with_tls_scheme(target_.uri) && nbd_get_tls_negotiated(handle) <= 0) {
    throw Error(Outcome::Io, fmt::format("{}: the server did not agree to TLS", target_.uri));
  }
}

void NbdSession::throw_if_tls_is_required(const OptionAnswer& answer) const {
  if (starts_with_tls_scheme(target_.uri) || answer.message.find("requires TLS") == std::string::npos) return;
  throw Error(Outcome::Io,
              fmt::format("{}: the server requires TLS; use an nbds:// or nbds+unix:// URI", target_.uri));
}

void NbdSession::throw_refused(OptionAnswer answer) {
  throw_if_tls_is_required(answer);
  if (answer.message.empty()) answer.message = loss_;
  if (answer.error_number != ENOENT && !answer.message.empty()) {
    throw Error(Outcome::Io,
                fmt::format("{}: the server refuses to open the export: {}", target_.uri, answer.message));
  }
  std::vector<std::string> names;
  try {
    names = offered_exports();
  } catch (const Error& error) {
    if (error.outcome() != Outcome::Io) throw;  // a cancellation
  }
  const std::string more = names.size() > kMaxExports ? ", and more" : "";
  if (!more.empty()) names.pop_back();
  for (std::string& name : names) name = '"' + name + '"';
  const std::string on_offer =
      names.empty() ? std::string() : fmt::format("; on offer: {}{}", fmt::join(names, ", "), more);
  const int error_number = answer.error_number != 0 ? answer.error_number : ENOENT;
  throw Error(Outcome::Io,
              std::string(system_error(fmt::format("{}: the server does not offer this export", target_.uri),
                                       error_number)
                              .what()) +
                  on_offer);
}

// A server that requires a client certificate, or rejects it, closes the connection; with TLS 1.3 only after
// the client's part of the handshake. libnbd's message does not name the cause.
std::string NbdSession::client_certificate_hint() const {
  if (target_.tls_certificates.empty() || loss_.find("gnutls") == std::string::npos ||
      loss_.find("verification") != std::string::npos) {
    return {};
  }
  const std::string certificate = target_.tls_certificates + "/client-cert.pem";
  if (access(certificate.c_str(), R_OK) == 0) {
    return fmt::format("; the server may have refused the client certificate {}", certificate);
  }
  return fmt::format(
      "; the server may require a client certificate, and there is no {} (with client-key.pem)", certificate);
}

void NbdSession::learn_features() {
  nbd_handle* const handle = handle_.get();
  const std::int64_t size = nbd_get_size(handle);
  if (size < 0) {
    throw Error(Outcome::Io,
                fmt::format("{}: cannot get the size of the export: {}", target_.uri, last_error()));
  }
  features_.size = static_cast<std::uint64_t>(size);
  features_.multi_conn = nbd_can_multi_conn(handle) > 0;
  features_.df = nbd_can_df(handle) > 0;
  features_.structured = nbd_get_structured_replies_negotiated(handle) > 0;
  features_.read_only = nbd_is_read_only(handle) > 0;
  features_.flush = nbd_can_flush(handle) > 0;
  features_.zero = nbd_can_zero(handle) > 0;
  features_.fast_zero = features_.zero && nbd_can_fast_zero(handle) > 0;
  const std::int64_t minimum = nbd_get_block_size(handle, LIBNBD_SIZE_MINIMUM);
  features_.minimum_block = minimum > 0 ? static_cast<std::uint64_t>(minimum) : kSectorSize;
  if (minimum > 0 && features_.size % features_.minimum_block != 0) {
    throw Error(Outcome::Io,
                fmt::format("{}: the last {} bytes cannot be read: the export has {} bytes, which is not "
                            "a multiple of its block size {}",
                            target_.uri, features_.size % features_.minimum_block, features_.size,
                            features_.minimum_block));
  }
  const std::int64_t maximum = nbd_get_block_size(handle, LIBNBD_SIZE_MAXIMUM);
  if (maximum > 0) features_.maximum_request = static_cast<std::uint64_t>(maximum);
}

std::string NbdSession::export_name() const {
  const std::unique_ptr<char, decltype(&std::free)> name(nbd_get_export_name(handle_.get()), std::free);
  return name ? name.get() : std::string();
}

bool NbdSession::has_context(const std::string& context) const {
  return nbd_can_meta_context(handle_.get(), context.c_str()) > 0;
}

bool NbdSession::is_dead() const {
  return end_ != End::None || nbd_aio_is_dead(handle_.get()) > 0 || nbd_aio_is_closed(handle_.get()) > 0;
}

std::string NbdSession::reason() const {
  if (end_ == End::Abandoned) return "it was abandoned after an error";
  return loss_.empty() ? "the server closed the connection" : loss_;
}

void NbdSession::time_out() {
  loss_ = fmt::format("no answer within {} (timed out; a longer time-out can be set)",
                      to_string(limit_.allowed()));
  end_ = End::TimedOut;
}

bool NbdSession::wait() {
  constexpr std::chrono::milliseconds kSlice{200};  // how late a cancellation may be noticed
  nbd_handle* const handle = handle_.get();
  const unsigned direction = nbd_aio_get_direction(handle);
  socket_ = nbd_aio_get_fd(handle);
  pollfd waiting{socket_, 0, 0};
  if ((direction & LIBNBD_AIO_DIRECTION_READ) != 0) waiting.events |= POLLIN;
  if ((direction & LIBNBD_AIO_DIRECTION_WRITE) != 0) waiting.events |= POLLOUT;
  int ready = 0;
  bool over = limit_.is_over();  // also if a server sends data, but never a complete answer
  while (ready == 0 && !over) {
    try {
      throw_if_cancelled();
    } catch (...) {
      abandon();
      throw;
    }
    ready = std::max(0, poll(&waiting, 1, static_cast<int>(kSlice.count())));
    over = limit_.is_over();
  }
  // Also if bytes arrive, but too slowly for an answer to be complete in time.
  if (over) {
    time_out();
    return false;
  }
  const bool readable = (waiting.revents & POLLIN) != 0 || (waiting.revents & POLLOUT) == 0;
  const int failed = readable ? nbd_aio_notify_read(handle) : nbd_aio_notify_write(handle);
  if (failed != 0 && loss_.empty()) loss_ = last_error();
  return !is_dead();
}

// Each step of the handshake has a time limit of its own. The call that starts it may already find the
// connection closed.
void NbdSession::begin_step() { limit_.renew(std::min(target_.timeout, target_.connect_timeout)); }

void NbdSession::wait_until_connected(const char* step) {
  while (nbd_aio_is_connecting(handle_.get()) > 0 && wait()) {
  }
  if (!is_dead()) return;
  throw_if_cancelled();
  if (!timed_out() && limit_.is_over()) time_out();  // the Watch has shut the socket down
  throw Error(Outcome::Io,
              fmt::format("{}: cannot {}: {}{}", target_.uri, step, reason(), client_certificate_hint()));
}

NbdSession::Cookie NbdSession::begun(Cookie cookie, const char* command, const GuestRange& range) {
  if (cookie >= 0) return cookie;
  const int error_number = last_errno();
  const std::string message = last_error();
  if (is_dead()) {
    if (loss_.empty()) loss_ = message;
    return -1;
  }
  abandon();  // other commands may be in flight, with buffers that are about to be freed
  throw system_error(
      fmt::format("{}: libnbd refuses to {} {} ({})", target_.uri, command, to_string(range), message),
      error_number);
}

NbdSession::Cookie NbdSession::start_read(GuestOffset begin, std::span<std::byte> into,
                                          const std::shared_ptr<ReadReply>& reply) {
  const GuestRange range{begin, begin + into.size()};
  if (!reply) {
    return begun(
        nbd_aio_pread(handle_.get(), into.data(), into.size(), begin.bytes(), nbd_completion_callback{}, 0),
        "read", range);
  }
  // With DF a server reads the data; without, QEMU consults its block status, which can race with the guest
  // and send holes for what is data.
  const nbd_chunk_callback chunks{note_chunk, new std::shared_ptr<ReadReply>(reply), drop_share<ReadReply>};
  return begun(nbd_aio_pread_structured(handle_.get(), into.data(), into.size(), begin.bytes(), chunks,
                                        nbd_completion_callback{}, features_.df ? LIBNBD_CMD_FLAG_DF : 0),
               "read", range);
}

NbdSession::Cookie NbdSession::start_status(const GuestRange& range,
                                            const std::shared_ptr<StatusReply>& reply) {
  const nbd_extent_callback extents{note_extents, new std::shared_ptr<StatusReply>(reply),
                                    drop_share<StatusReply>};
  return begun(nbd_aio_block_status(handle_.get(), range.length(), range.begin.bytes(), extents,
                                    nbd_completion_callback{}, 0),
               "query the block status of", range);
}

NbdSession::Cookie NbdSession::start_write(GuestOffset begin, std::span<const std::byte> bytes) {
  return begun(
      nbd_aio_pwrite(handle_.get(), bytes.data(), bytes.size(), begin.bytes(), nbd_completion_callback{}, 0),
      "write", {begin, begin + bytes.size()});
}

NbdSession::Cookie NbdSession::start_zero(const GuestRange& range, ZeroSpeed speed) {
  const std::uint32_t flags = (speed == ZeroSpeed::Fast ? LIBNBD_CMD_FLAG_FAST_ZERO : 0) |
                              (target_.keep_space ? LIBNBD_CMD_FLAG_NO_HOLE : 0);
  return begun(
      nbd_aio_zero(handle_.get(), range.length(), range.begin.bytes(), nbd_completion_callback{}, flags),
      "write zeros to", range);
}

NbdSession::Cookie NbdSession::start_flush() {
  return begun(nbd_aio_flush(handle_.get(), nbd_completion_callback{}, 0), "flush",
               guest_range(0, features_.size));
}

NbdSession::Completion NbdSession::completion(Cookie cookie) {
  const int completed = nbd_aio_command_completed(handle_.get(), static_cast<std::uint64_t>(cookie));
  if (completed >= 0) return {completed > 0, 0, {}};
  return {true, last_errno(), last_error()};
}

std::string nbd_version() {
  const std::unique_ptr<nbd_handle, decltype(&nbd_close)> handle(nbd_create(), nbd_close);
  const char* const version = handle ? nbd_get_version(handle.get()) : nullptr;
  return version != nullptr ? version : "unknown";
}

}  // namespace qchain
