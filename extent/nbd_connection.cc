#include "extent/nbd_connection.h"

#include <fmt/format.h>
#include <libnbd.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "extent/error.h"
#include "extent/interrupt.h"

namespace qchain {

namespace {

using Clock = std::chrono::steady_clock;

// libnbd's words for the last failed call of this thread; they last only until the next call.
std::string last_error() {
  const char* words = nbd_get_error();
  return words != nullptr ? words : "unknown error";
}

int last_errno() {
  const int number = nbd_get_errno();
  return number != 0 ? number : EIO;
}

constexpr std::size_t kMaxContexts = 1024;  // on offer; no server has that many bitmaps

// Callbacks run inside libnbd, which is C: no exception may leave them.
int add_context_name(void* user_data, const char* name) noexcept {
  auto& names = *static_cast<std::vector<std::string>*>(user_data);
  if (names.size() <= kMaxContexts) names.emplace_back(name);
  return 0;
}

int note_option_error(void* user_data, int* error) noexcept {
  *static_cast<int*>(user_data) = *error;
  return 1;  // libnbd forgets the option
}

// How much of a request its chunks have covered, each byte once. libnbd adds lengths up and does not see
// chunks that overlap.
class Coverage {
 public:
  explicit Coverage(const GuestRange& range) : range_(range) {}

  void add(std::uint64_t offset, std::uint64_t length) {
    if (!chunks_.empty() && chunks_.back().offset + chunks_.back().length == offset) {
      chunks_.back().length += length;
    } else if (length > 0 && chunks_.size() <= kMaxChunks) {
      chunks_.push_back({offset, length});
    }
  }

  bool is_complete() const {
    if (chunks_.size() > kMaxChunks) return false;
    std::vector<Chunk> sorted = chunks_;
    std::ranges::sort(sorted, {}, &Chunk::offset);
    std::uint64_t at = range_.begin.bytes();
    for (const Chunk& chunk : sorted) {
      if (chunk.offset != at || chunk.length > range_.end.bytes() - at) return false;
      at += chunk.length;
    }
    return at == range_.end.bytes();
  }

 private:
  struct Chunk {
    std::uint64_t offset;
    std::uint64_t length;
  };
  static constexpr std::size_t kMaxChunks = 4096;  // that do not follow each other

  GuestRange range_;
  std::vector<Chunk> chunks_;
};

// libnbd may hold the callback longer than the request is of interest to us.
using SharedCoverage = std::shared_ptr<Coverage>;

int note_chunk(void* user_data, const void*, std::size_t count, std::uint64_t offset, unsigned status,
               int*) noexcept {
  if (status != LIBNBD_READ_ERROR) (*static_cast<SharedCoverage*>(user_data))->add(offset, count);
  return 0;
}

void drop_coverage(void* user_data) noexcept { delete static_cast<SharedCoverage*>(user_data); }

bool starts_with_tls_scheme(const std::string& uri) {
  return uri.starts_with("nbds:") || uri.starts_with("nbds+");
}

}  // namespace

void NbdConnection::Close::operator()(nbd_handle* handle) const noexcept { nbd_close(handle); }

struct NbdConnection::InFlight {
  std::int64_t cookie;
  ReadRequest request;
  SharedCoverage coverage;  // none: the reply has no chunks
};

NbdConnection::NbdConnection(const NbdTarget& target)
    : target_(target), handle_(nbd_create()), request_size_(target.request_size) {
  if (!handle_) throw Error(Outcome::Io, fmt::format("{}: {}", target.uri, last_error()));
  set_up_tls();
  nbd_set_pread_initialize(handle_.get(), false);  // coverage is looked at here
  nbd_set_opt_mode(handle_.get(), true);
  if (nbd_aio_connect_uri(handle_.get(), target_.uri.c_str()) != 0) {
    throw Error(Outcome::Io, fmt::format("{}: cannot connect: {}", target_.uri, last_error()));
  }
  wait_until_connected("connect");
}

NbdConnection::~NbdConnection() {
  // A word of goodbye, without waiting for an answer.
  if (!silent_ && nbd_aio_is_ready(handle_.get()) > 0) nbd_aio_disconnect(handle_.get(), 0);
}

void NbdConnection::set_up_tls() {
  nbd_handle* const handle = handle_.get();
  if (!starts_with_tls_scheme(target_.uri)) {
    if (!target_.tls_certificates.empty() || !target_.tls_psk_file.empty()) {
      throw Error(Outcome::Usage,
                  fmt::format("{}: TLS was asked for, but the URI does not begin with nbds", target_.uri));
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
    throw Error(Outcome::Usage,
                fmt::format("{}: TLS needs --tls-psk-file FILE or --tls-certificates DIR, or the server "
                            "could be anyone",
                            target_.uri));
  }
  // libnbd verifies the peer's name only over TCP, and nobody at all where the CA file is missing.
  const std::string authority = target_.tls_certificates + "/ca-cert.pem";
  if (access(authority.c_str(), R_OK) != 0) {
    throw system_error(fmt::format("{}: cannot be read, so the server cannot be verified", authority), errno);
  }
  if (!target_.uri.starts_with("nbds:")) {
    throw Error(Outcome::Usage,
                fmt::format("{}: a certificate cannot be checked against a name on this transport; use "
                            "--tls-psk-file",
                            target_.uri));
  }
  nbd_set_tls_certificates(handle, target_.tls_certificates.c_str());
  nbd_set_tls_verify_peer(handle, true);
}

std::vector<std::string> NbdConnection::offered_contexts() {
  std::vector<std::string> names;
  nbd_handle* const handle = handle_.get();
  if (nbd_aio_is_negotiating(handle) <= 0) return names;  // an oldstyle server has none
  nbd_add_meta_context(handle, LIBNBD_CONTEXT_BASE_ALLOCATION);
  nbd_add_meta_context(handle, "qemu:");
  const int started = nbd_aio_opt_list_meta_context(
      handle, nbd_context_callback{add_context_name, &names, nullptr}, nbd_completion_callback{});
  if (started == 0) wait_until_connected("list meta contexts");
  nbd_clear_meta_contexts(handle);
  if (names.size() > kMaxContexts) {
    throw Error(Outcome::Io,
                fmt::format("{}: the server lists more than {} meta contexts", target_.uri, kMaxContexts));
  }
  return names;
}

void NbdConnection::require_export() {
  int option_error = 0;
  const int started =
      nbd_aio_opt_info(handle_.get(), nbd_completion_callback{note_option_error, &option_error, nullptr});
  if (started == 0) wait_until_connected("ask for the export");
  if (option_error == ENOENT) throw_not_offered(option_error);
}

void NbdConnection::negotiate(const std::vector<std::string>& contexts) {
  nbd_handle* const handle = handle_.get();
  if (nbd_aio_is_negotiating(handle) > 0) {
    for (const std::string& context : contexts) nbd_add_meta_context(handle, context.c_str());
    int option_error = 0;
    if (nbd_aio_opt_go(handle, nbd_completion_callback{note_option_error, &option_error, nullptr}) != 0) {
      throw Error(Outcome::Io, fmt::format("{}: {}", target_.uri, last_error()));
    }
    wait_until_connected("open the export");
    if (nbd_aio_is_ready(handle) <= 0) {
      throw_not_offered(option_error != 0 ? option_error : ENOENT);
    }
  }
  if (starts_with_tls_scheme(target_.uri) && nbd_get_tls_negotiated(handle) <= 0) {
    throw Error(Outcome::Io, fmt::format("{}: the server did not agree to TLS", target_.uri));
  }
  learn_limits();
}

void NbdConnection::throw_not_offered(int error_number) const {
  throw system_error(fmt::format("{}: the server does not offer this export", target_.uri), error_number);
}

void NbdConnection::learn_limits() {
  nbd_handle* const handle = handle_.get();
  const std::int64_t size = nbd_get_size(handle);
  if (size < 0) {
    throw Error(Outcome::Io, fmt::format("{}: size unknown: {}", target_.uri, last_error()));
  }
  size_ = static_cast<std::uint64_t>(size);
  multi_conn_ = nbd_can_multi_conn(handle) > 0;
  df_ = nbd_can_df(handle) > 0;
  structured_ = nbd_get_structured_replies_negotiated(handle) > 0;
  read_only_ = nbd_is_read_only(handle) > 0;
  flush_ = nbd_can_flush(handle) > 0;
  if (nbd_can_zero(handle) > 0) zeroing_ = nbd_can_fast_zero(handle) > 0 ? Zeroing::Fast : Zeroing::Slow;
  const std::int64_t minimum = nbd_get_block_size(handle, LIBNBD_SIZE_MINIMUM);
  minimum_block_ = minimum > 0 ? static_cast<std::uint64_t>(minimum) : kSectorSize;
  if (minimum > 0 && size_ % minimum_block_ != 0) {
    throw Error(Outcome::Io,
                fmt::format("{}: the last {} bytes cannot be read: the export has {} bytes, which is not "
                            "a multiple of its block size {}",
                            target_.uri, size_ % minimum_block_, size_, minimum_block_));
  }
  const std::int64_t maximum = nbd_get_block_size(handle, LIBNBD_SIZE_MAXIMUM);
  if (maximum > 0) request_size_ = std::min(request_size_, static_cast<std::uint64_t>(maximum));
  request_size_ = std::max(minimum_block_, align_down(request_size_, minimum_block_));
}

bool NbdConnection::has_context(const std::string& context) const {
  return nbd_can_meta_context(handle_.get(), context.c_str()) > 0;
}

bool NbdConnection::is_dead() const {
  return silent_ || nbd_aio_is_dead(handle_.get()) > 0 || nbd_aio_is_closed(handle_.get()) > 0;
}

void NbdConnection::expect_answer() { patience_ = target_.timeout; }

bool NbdConnection::wait_for_server() {
  constexpr std::chrono::milliseconds kSlice{200};  // how late an interrupt may be noticed
  nbd_handle* const handle = handle_.get();
  const unsigned direction = nbd_aio_get_direction(handle);
  pollfd waiting{nbd_aio_get_fd(handle), 0, 0};
  if ((direction & LIBNBD_AIO_DIRECTION_READ) != 0) waiting.events |= POLLIN;
  if ((direction & LIBNBD_AIO_DIRECTION_WRITE) != 0) waiting.events |= POLLOUT;
  int ready = 0;
  while (ready == 0 && patience_ > Clock::duration::zero()) {
    try {
      throw_if_interrupted();
    } catch (...) {
      silent_ = true;  // commands may be in flight into buffers that are about to go
      throw;
    }
    const Clock::time_point begin = Clock::now();
    ready = std::max(0, poll(&waiting, 1, static_cast<int>(kSlice.count())));
    // What is over a slice is not the server's: this process was stopped.
    patience_ -= std::min<Clock::duration>(Clock::now() - begin, kSlice);
  }
  // Also where bytes do come in, but too slowly for an answer to be complete in time.
  if (patience_ <= Clock::duration::zero()) {
    silent_ = true;
    return false;
  }
  if ((waiting.revents & POLLIN) != 0 || (waiting.revents & POLLOUT) == 0) {
    nbd_aio_notify_read(handle);
  } else {
    nbd_aio_notify_write(handle);
  }
  return !is_dead();
}

void NbdConnection::wait_until_connected(const char* step) {
  const std::chrono::milliseconds timeout = std::min(target_.timeout, target_.connect_timeout);
  patience_ = timeout;
  while (nbd_aio_is_connecting(handle_.get()) > 0) {
    if (!wait_for_server()) {
      const std::string reason =
          silent_ ? fmt::format("no answer within {} ms", timeout.count()) : last_error();
      throw Error(Outcome::Io, fmt::format("{}: cannot {}: {}", target_.uri, step, reason));
    }
  }
  if (is_dead()) {
    throw Error(Outcome::Io, fmt::format("{}: cannot {}: {}", target_.uri, step, last_error()));
  }
}

std::vector<ReadRequest> NbdConnection::requests_for(std::span<const ReadRequest> batch) const {
  std::vector<ReadRequest> requests;
  for (ReadRequest rest : batch) {
    while (!rest.into.empty()) {
      const std::size_t step = std::min<std::uint64_t>(rest.into.size(), request_size_);
      requests.push_back({rest.begin, rest.into.first(step)});
      rest = {rest.begin + step, rest.into.subspan(step)};
    }
  }
  return requests;
}

bool NbdConnection::start(const ReadRequest& request, std::vector<InFlight>& in_flight) {
  nbd_handle* const handle = handle_.get();
  void* const into = request.into.data();
  const std::size_t length = request.into.size();
  SharedCoverage coverage;
  std::int64_t cookie = 0;
  if (structured_) {
    // With DF a server reads; without, QEMU goes through its block status, which can race with the guest
    // and send holes for what is data.
    coverage = std::make_shared<Coverage>(request.range());
    cookie =
        nbd_aio_pread_structured(handle, into, length, request.begin.bytes(),
                                 nbd_chunk_callback{note_chunk, new SharedCoverage(coverage), drop_coverage},
                                 nbd_completion_callback{}, df_ ? LIBNBD_CMD_FLAG_DF : 0);
  } else {
    cookie = nbd_aio_pread(handle, into, length, request.begin.bytes(), nbd_completion_callback{}, 0);
  }
  if (cookie >= 0) {
    in_flight.push_back({cookie, request, std::move(coverage)});
    return true;
  }
  if (is_dead()) return false;
  throw Error(Outcome::Io, fmt::format("{}: cannot ask for {}: {}", target_.uri, to_string(request.range()),
                                       last_error()));
}

// Commands are never retired by a callback: libnbd looks for bytes that a structured reply left out
// only in nbd_aio_command_completed().
void NbdConnection::retire(std::vector<InFlight>& in_flight, std::vector<FailedRead>& failed) {
  const std::size_t retired = std::erase_if(in_flight, [&](const InFlight& command) {
    const int completed =
        nbd_aio_command_completed(handle_.get(), static_cast<std::uint64_t>(command.cookie));
    if (completed < 0) failed.push_back({command.request, last_errno()});
    if (completed > 0 && command.coverage && !command.coverage->is_complete()) {
      failed.push_back({command.request, EPROTO});
    }
    return completed != 0;
  });
  if (retired != 0) expect_answer();
}

std::vector<FailedRead> NbdConnection::read(std::span<const ReadRequest> batch) {
  std::vector<FailedRead> failed;
  std::vector<InFlight> in_flight;
  const std::vector<ReadRequest> requests = requests_for(batch);
  std::size_t next = 0;
  expect_answer();
  while (next < requests.size() || !in_flight.empty()) {
    while (next < requests.size() && in_flight.size() < target_.requests_in_flight && !is_dead()) {
      const ReadRequest& request = requests[next];
      const bool aligned =
          request.begin.bytes() % minimum_block_ == 0 &&
          (request.into.size() % minimum_block_ == 0 || request.range().end == GuestOffset(size_));
      if (!aligned) {
        if (!in_flight.empty()) break;  // alone, after what is under way
        if (const std::optional<FailedRead> failure = read_unaligned(request)) {
          failed.push_back(*failure);
        }
      } else if (!start(request, in_flight)) {
        break;
      }
      ++next;
    }
    if (is_dead()) {
      for (const InFlight& command : in_flight) failed.push_back({command.request, ENOTCONN});
      for (; next < requests.size(); ++next) failed.push_back({requests[next], ENOTCONN});
      return failed;
    }
    if (in_flight.empty()) continue;
    wait_for_server();
    if (!silent_) retire(in_flight, failed);
  }
  return failed;
}

std::optional<FailedRead> NbdConnection::read_unaligned(const ReadRequest& request) {
  const std::uint64_t begin = align_down(request.begin.bytes(), minimum_block_);
  const std::uint64_t end = std::min(size_, align_up(request.range().end.bytes(), minimum_block_));
  std::vector<std::byte> enclosing(end - begin);
  const ReadRequest whole{GuestOffset(begin), enclosing};
  const std::vector<FailedRead> failed = read(std::span(&whole, 1));
  if (!failed.empty()) return FailedRead{request, failed.front().error_number};
  std::memcpy(request.into.data(), enclosing.data() + (request.begin.bytes() - begin), request.into.size());
  return std::nullopt;
}

namespace {

constexpr std::size_t kMaxStatusExtents = 16384;

// What the extent callbacks of one command have brought.
struct StatusReply {
  std::vector<std::string> contexts;
  std::uint64_t limit;
  std::vector<std::vector<ContextExtent>> extents;
  const char* complaint = nullptr;

  void take(const char* context, std::span<const std::uint32_t> entries) {
    const auto known = std::ranges::find(contexts, context);
    if (known == contexts.end()) return;  // never asked for: not our business
    std::vector<ContextExtent>& list = extents[static_cast<std::size_t>(known - contexts.begin())];
    if (!list.empty()) complaint = "the same context twice";
    std::uint64_t covered = 0;
    // A short answer is as good as a long one, and memory stays bounded.
    for (std::size_t i = 0; i + 1 < entries.size() && covered < limit && list.size() < kMaxStatusExtents;
         i += 2) {
      if (entries[i] == 0) {
        complaint = "an extent of no length";
        return;
      }
      const std::uint64_t length = std::min<std::uint64_t>(entries[i], limit - covered);
      list.push_back({length, entries[i + 1]});
      covered += length;
    }
  }
};

// The reply is shared with libnbd, which may still hold the callback when an exception leaves
// block_status().
using SharedReply = std::shared_ptr<StatusReply>;

int note_extents(void* user_data, const char* context, std::uint64_t, std::uint32_t* entries,
                 std::size_t count, int*) noexcept {
  (*static_cast<SharedReply*>(user_data))->take(context, {entries, count});
  return 0;
}

void drop_reply(void* user_data) noexcept { delete static_cast<SharedReply*>(user_data); }

}  // namespace

std::vector<std::vector<ContextExtent>> NbdConnection::block_status(
    const GuestRange& range, const std::vector<std::string>& contexts) {
  const auto complain = [&](const std::string& what) {
    return Error(Outcome::Io, fmt::format("{}: block status of {}: {}", target_.uri, to_string(range), what));
  };
  if (is_dead()) throw complain("the connection was lost before");
  const auto reply = std::make_shared<StatusReply>(
      StatusReply{contexts, range.length(), {contexts.size(), std::vector<ContextExtent>{}}});
  const std::int64_t cookie = nbd_aio_block_status(
      handle_.get(), range.length(), range.begin.bytes(),
      nbd_extent_callback{note_extents, new SharedReply(reply), drop_reply}, nbd_completion_callback{}, 0);
  expect_answer();
  complete(cookie, fmt::format("block status of {}", to_string(range)));
  if (reply->complaint != nullptr) {
    throw complain(fmt::format("the server sent {}", reply->complaint));
  }
  for (std::size_t i = 0; i < contexts.size(); ++i) {
    if (reply->extents[i].empty()) {
      throw complain(fmt::format("the server sent nothing for {}", contexts[i]));
    }
  }
  return std::move(reply->extents);
}

void NbdConnection::complete(std::int64_t cookie, const std::string& what) {
  const auto complain = [&](const std::string& reason) {
    return Error(Outcome::Io, fmt::format("{}: {}: {}", target_.uri, what, reason));
  };
  if (cookie < 0) throw complain(last_error());
  const auto patience = std::chrono::duration_cast<std::chrono::milliseconds>(patience_);
  for (;;) {
    const int completed = nbd_aio_command_completed(handle_.get(), static_cast<std::uint64_t>(cookie));
    if (completed > 0) return;
    if (completed < 0) throw complain(last_error());
    wait_for_server();
    if (silent_) throw complain(fmt::format("no answer within {} ms", patience.count()));
  }
}

namespace {

// The most zeros in one request. A server that has to write them for lack of anything faster needs time.
constexpr std::uint64_t kMaxFastZeros = std::uint64_t{2} << 30;  // of 32 bits, with every block size in it
constexpr std::uint64_t kMaxSlowZeros = std::uint64_t{32} << 20;
constexpr std::uint64_t kMaxPlainZeros = std::uint64_t{64} << 10;
// A flush has to write out all that the server's cache has taken.
constexpr int kFlushPatience = 20;  // time-outs

}  // namespace

struct NbdConnection::Writing {
  std::int64_t cookie;
  WriteRequest request;
  Zeroing way;  // Plain: bytes are sent
  int error_number = 0;
};

void NbdConnection::write(std::span<const WriteRequest> batch) {
  std::deque<WriteRequest> blocks;
  for (const WriteRequest& request : batch) {
    const std::uint64_t end = request.range.end.bytes();
    if (end % minimum_block_ == 0 || end == size_) {
      blocks.push_back(request);
    } else {
      write_unaligned(request);
    }
  }
  write_blocks(std::move(blocks));
}

void NbdConnection::write_unaligned(const WriteRequest& request) {
  const GuestOffset border(align_down(request.range.end.bytes(), minimum_block_));
  const GuestRange edge{border, request.range.end};
  std::vector<std::byte> block(std::min(minimum_block_, size_ - border.bytes()));
  const ReadRequest whole{border, block};
  const std::vector<FailedRead> failed = read(std::span(&whole, 1));
  if (!failed.empty()) {
    throw system_error(fmt::format("{}: cannot read {}, of which only a part is to be written", target_.uri,
                                   to_string(whole.range())),
                       failed.front().error_number);
  }
  const std::size_t before = request.bytes.empty() ? 0 : request.bytes.size() - edge.length();
  if (request.bytes.empty()) {
    std::memset(block.data(), 0, edge.length());
  } else {
    std::memcpy(block.data(), request.bytes.data() + before, edge.length());
  }
  std::deque<WriteRequest> todo{{whole.range(), block}};
  const GuestRange rest{request.range.begin, border};
  if (!rest.empty()) todo.push_front({rest, request.bytes.first(before)});
  write_blocks(std::move(todo));
}

void NbdConnection::write_blocks(std::deque<WriteRequest> todo) {
  std::vector<Writing> in_flight;
  std::optional<Writing> failed;
  expect_answer();
  while (!todo.empty() || !in_flight.empty()) {
    while (!todo.empty() && in_flight.size() < target_.requests_in_flight && !is_dead()) {
      in_flight.push_back(start(take_step(todo)));
    }
    if (!is_dead()) wait_for_server();
    if (is_dead()) {
      const std::string reason =
          silent_ ? fmt::format("no answer within {} ms", target_.timeout.count()) : last_error();
      const WriteRequest& lost = in_flight.empty() ? todo.front() : in_flight.front().request;
      throw Error(Outcome::Io, fmt::format("{}: the connection was lost while writing {}: {}", target_.uri,
                                           to_string(lost.range), reason));
    }
    retire(in_flight, todo, failed);
    if (failed) todo.clear();  // what is in flight needs its bytes until the server has answered
  }
  if (failed) {
    throw system_error(fmt::format("{}: cannot write {}", target_.uri, to_string(failed->request.range)),
                       failed->error_number);
  }
}

// Takes off as much as one command can hold.
WriteRequest NbdConnection::take_step(std::deque<WriteRequest>& todo) const {
  WriteRequest& rest = todo.front();
  std::uint64_t most = request_size_;
  if (rest.bytes.empty()) {
    most = zeroing_ == Zeroing::Fast   ? kMaxFastZeros
           : zeroing_ == Zeroing::Slow ? kMaxSlowZeros
                                       : std::min(request_size_, kMaxPlainZeros);
  }
  most = align_down(most, minimum_block_);
  if (rest.range.length() <= most) {
    const WriteRequest all = rest;
    todo.pop_front();
    return all;
  }
  WriteRequest step = rest;
  step.range.end = rest.range.begin = step.range.begin + most;
  if (!rest.bytes.empty()) {
    step.bytes = rest.bytes.first(most);
    rest.bytes = rest.bytes.subspan(most);
  }
  return step;
}

NbdConnection::Writing NbdConnection::start(const WriteRequest& request) {
  static constexpr std::array<std::byte, kMaxPlainZeros> kZeros{};
  nbd_handle* const handle = handle_.get();
  const std::uint64_t begin = request.range.begin.bytes();
  const std::uint64_t length = request.range.length();
  Writing writing{-1, request, request.bytes.empty() ? zeroing_ : Zeroing::Plain};
  if (writing.way == Zeroing::Plain) {
    const void* const bytes = request.bytes.empty() ? kZeros.data() : request.bytes.data();
    writing.cookie = nbd_aio_pwrite(handle, bytes, length, begin, nbd_completion_callback{}, 0);
  } else {
    const std::uint32_t flags = (writing.way == Zeroing::Fast ? LIBNBD_CMD_FLAG_FAST_ZERO : 0) |
                                (target_.keep_space ? LIBNBD_CMD_FLAG_NO_HOLE : 0);
    writing.cookie = nbd_aio_zero(handle, length, begin, nbd_completion_callback{}, flags);
  }
  if (writing.cookie < 0 && !is_dead()) {
    const int error_number = last_errno();
    silent_ = true;  // other commands may be in flight, of bytes that are about to go
    throw system_error(fmt::format("{}: cannot write {}", target_.uri, to_string(request.range)),
                       error_number);
  }
  return writing;
}

// Forgets what is done. Zeros that were refused are to be written in another way; any other failure is one.
void NbdConnection::retire(std::vector<Writing>& in_flight, std::deque<WriteRequest>& todo,
                           std::optional<Writing>& failed) {
  const std::size_t retired = std::erase_if(in_flight, [&](Writing& command) {
    const int completed =
        nbd_aio_command_completed(handle_.get(), static_cast<std::uint64_t>(command.cookie));
    if (completed >= 0) return completed > 0;
    command.error_number = last_errno();
    switch (command.way) {
      case Zeroing::Fast:
        zeroing_ = std::max(zeroing_, Zeroing::Slow);
        todo.push_front(command.request);
        break;
      case Zeroing::Slow:
        zeroing_ = Zeroing::Plain;
        todo.push_front(command.request);
        break;
      case Zeroing::Plain:
        if (!failed) failed = command;
    }
    return true;
  });
  if (retired != 0) expect_answer();
}

void NbdConnection::flush() {
  if (is_dead())
    throw Error(Outcome::Io, fmt::format("{}: cannot flush: the connection was lost", target_.uri));
  if (!flush_) return;
  patience_ = kFlushPatience * target_.timeout;
  complete(nbd_aio_flush(handle_.get(), nbd_completion_callback{}, 0), "cannot flush");
}

std::string nbd_version() {
  const std::unique_ptr<nbd_handle, decltype(&nbd_close)> handle(nbd_create(), nbd_close);
  const char* const version = handle ? nbd_get_version(handle.get()) : nullptr;
  return version != nullptr ? version : "unknown";
}

}  // namespace qchain
