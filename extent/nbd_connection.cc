#include "extent/nbd_connection.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "extent/error.h"

namespace qchain {

struct NbdConnection::InFlight {
  NbdSession::Cookie cookie;
  ReadRequest request;
  std::shared_ptr<ReadReply> reply;  // null: the reply has no chunks
};

struct NbdConnection::Writing {
  NbdSession::Cookie cookie;
  WriteRequest request;
  Zeroing method;  // Plain: bytes are sent
  int error_number = 0;
};

NbdConnection::NbdConnection(const NbdTarget& target, const ContextChooser& choose)
    : requests_in_flight_(target.requests_in_flight),
      session_(target, choose),
      request_size_(target.request_size) {
  const NbdFeatures& features = session_.features();
  if (features.maximum_request != 0) request_size_ = std::min(request_size_, features.maximum_request);
  request_size_ = std::max(minimum_block(), align_down(request_size_, minimum_block()));
  if (features.zero) zeroing_ = features.fast_zero ? Zeroing::Fast : Zeroing::Slow;
}

NbdConnection::~NbdConnection() = default;

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

bool NbdConnection::is_aligned(const ReadRequest& request) const {
  return request.begin.bytes() % minimum_block() == 0 &&
         (request.into.size() % minimum_block() == 0 || request.range().end == GuestOffset(size()));
}

bool NbdConnection::start(const ReadRequest& request, std::vector<InFlight>& in_flight) {
  const NbdFeatures& features = session_.features();
  std::shared_ptr<ReadReply> reply;
  if (features.structured) {
    reply = std::make_shared<ReadReply>(
        request.range(), features.df ? ReadReply::Holes::AreRefused : ReadReply::Holes::AreZeros);
  }
  const NbdSession::Cookie cookie = session_.start_read(request.begin, request.into, reply);
  if (cookie < 0) return false;
  in_flight.push_back({cookie, request, std::move(reply)});
  return true;
}

void NbdConnection::retire(std::vector<InFlight>& in_flight, std::vector<FailedRead>& failed) {
  const std::size_t retired = std::erase_if(in_flight, [&](const InFlight& command) {
    const NbdSession::Completion completion = session_.completion(command.cookie);
    if (!completion.done) return false;
    if (completion.error_number != 0) {
      failed.push_back({command.request, completion.error_number});
    } else if (command.reply && !command.reply->is_complete()) {
      failed.push_back({command.request, EPROTO, command.reply->reason()});
    }
    return true;
  });
  if (retired != 0) session_.expect_answer();
}

std::vector<FailedRead> NbdConnection::read(std::span<const ReadRequest> batch) {
  try {
    return read_all(batch);
  } catch (...) {
    session_.abandon();  // requests may be in flight, into buffers that are about to be freed
    throw;
  }
}

std::vector<FailedRead> NbdConnection::read_all(std::span<const ReadRequest> batch) {
  std::vector<FailedRead> failed;
  std::vector<InFlight> in_flight;
  const std::vector<ReadRequest> requests = requests_for(batch);
  std::size_t next = 0;
  session_.expect_answer();
  while (next < requests.size() || !in_flight.empty()) {
    while (next < requests.size() && in_flight.size() < requests_in_flight_ && !is_dead()) {
      const ReadRequest& request = requests[next];
      if (!is_aligned(request)) {
        if (!in_flight.empty()) break;  // alone, after the requests in flight
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
    session_.wait();
    if (!timed_out()) retire(in_flight, failed);
  }
  return failed;
}

std::optional<FailedRead> NbdConnection::read_unaligned(const ReadRequest& request) {
  const std::uint64_t begin = align_down(request.begin.bytes(), minimum_block());
  const std::uint64_t end = std::min(size(), align_up(request.range().end.bytes(), minimum_block()));
  std::vector<std::byte> enclosing(end - begin);
  const ReadRequest whole{GuestOffset(begin), enclosing};
  const std::vector<FailedRead> failed = read(std::span(&whole, 1));
  if (!failed.empty()) {
    return FailedRead{request, failed.front().error_number, failed.front().reason};
  }
  std::memcpy(request.into.data(), enclosing.data() + (request.begin.bytes() - begin), request.into.size());
  return std::nullopt;
}

std::vector<std::vector<ContextExtent>> NbdConnection::block_status(
    const GuestRange& range, const std::vector<std::string>& contexts) {
  const std::string what = fmt::format("block status of {}", to_string(range));
  const auto reply = std::make_shared<StatusReply>(contexts, range.length());
  session_.expect_answer();
  complete(session_.start_status(range, reply), what);
  const std::string reason = reply->reason();
  if (!reason.empty()) {
    throw Error(Outcome::Io, fmt::format("{}: {}: {}", session_.uri(), what, reason));
  }
  return reply->take();
}

void NbdConnection::complete(NbdSession::Cookie cookie, const std::string& what) {
  const auto failure = [&](const std::string& reason) {
    return Error(Outcome::Io, fmt::format("{}: {}: {}", session_.uri(), what, reason));
  };
  for (;;) {
    if (cookie < 0 || session_.timed_out()) throw failure(session_.reason());
    const NbdSession::Completion completion = session_.completion(cookie);
    if (completion.error_number != 0) throw failure(completion.message);
    if (completion.done) return;
    session_.wait();
  }
}

namespace {

// The most zeros in one request. A server without a fast method writes them out, which takes time.
constexpr std::uint64_t kMaxFastZeros = std::uint64_t{2} << 30;  // 32 bits, a multiple of every block size
constexpr std::uint64_t kMaxSlowZeros = std::uint64_t{32} << 20;
constexpr std::uint64_t kMaxPlainZeros = std::uint64_t{64} << 10;
// A flush writes out all that is in the server's cache.
constexpr int kFlushTimeouts = 20;

}  // namespace

void NbdConnection::write(std::span<const WriteRequest> batch) {
  std::deque<WriteRequest> blocks;
  for (const WriteRequest& request : batch) {
    const std::uint64_t end = request.range.end.bytes();
    if (end % minimum_block() == 0 || end == size()) {
      blocks.push_back(request);
    } else {
      write_unaligned(request);
    }
  }
  write_blocks(std::move(blocks));
}

void NbdConnection::write_unaligned(const WriteRequest& request) {
  const GuestOffset border(align_down(request.range.end.bytes(), minimum_block()));
  const GuestRange edge{border, request.range.end};
  std::vector<std::byte> block(std::min(minimum_block(), size() - border.bytes()));
  const ReadRequest whole{border, block};
  const std::vector<FailedRead> failed = read(std::span(&whole, 1));
  if (!failed.empty()) {
    throw system_error(fmt::format("{}: cannot read the block {} in order to write a part of it",
                                   session_.uri(), to_string(whole.range())),
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
  std::optional<Writing> failed;
  try {
    failed = write_all(std::move(todo));
  } catch (...) {
    session_.abandon();  // requests may be in flight, from buffers that are about to be freed
    throw;
  }
  if (failed) {
    throw system_error(fmt::format("{}: cannot write {}", session_.uri(), to_string(failed->request.range)),
                       failed->error_number);
  }
}

// Returns the first request that failed.
std::optional<NbdConnection::Writing> NbdConnection::write_all(std::deque<WriteRequest> todo) {
  std::vector<Writing> in_flight;
  std::optional<Writing> failed;
  session_.expect_answer();
  while (!todo.empty() || !in_flight.empty()) {
    while (!todo.empty() && in_flight.size() < requests_in_flight_ && !is_dead()) {
      const WriteRequest step = take_step(todo);
      std::optional<Writing> writing = start(step);
      if (!writing)
        throw_lost_while_writing(in_flight.empty() ? step.range : in_flight.front().request.range);
      in_flight.push_back(*writing);
    }
    if (!is_dead()) session_.wait();
    if (is_dead()) {
      throw_lost_while_writing(in_flight.empty() ? todo.front().range : in_flight.front().request.range);
    }
    retire(in_flight, todo, failed);
    if (failed) todo.clear();  // requests in flight need their buffers until the server has replied
  }
  return failed;
}

void NbdConnection::throw_lost_while_writing(const GuestRange& range) const {
  const char* const what = timed_out() ? "cannot write" : "the connection was lost while writing";
  throw Error(Outcome::Io,
              fmt::format("{}: {} {}: {}", session_.uri(), what, to_string(range), session_.reason()));
}

// Takes off as much as fits in one request.
WriteRequest NbdConnection::take_step(std::deque<WriteRequest>& todo) const {
  WriteRequest& rest = todo.front();
  std::uint64_t most = request_size_;
  if (rest.bytes.empty()) {
    most = zeroing_ == Zeroing::Fast   ? kMaxFastZeros
           : zeroing_ == Zeroing::Slow ? kMaxSlowZeros
                                       : std::min(request_size_, kMaxPlainZeros);
  }
  most = align_down(most, minimum_block());
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

// nullopt if the connection is dead.
std::optional<NbdConnection::Writing> NbdConnection::start(const WriteRequest& request) {
  static constexpr std::array<std::byte, kMaxPlainZeros> kZeros{};
  Writing writing{-1, request, request.bytes.empty() ? zeroing_ : Zeroing::Plain};
  if (writing.method == Zeroing::Plain) {
    const std::span<const std::byte> zeros(kZeros);
    const bool is_zero = request.bytes.empty();
    writing.cookie = session_.start_write(request.range.begin,
                                          is_zero ? zeros.first(request.range.length()) : request.bytes);
  } else {
    writing.cookie =
        session_.start_zero(request.range, writing.method == Zeroing::Fast ? NbdSession::ZeroSpeed::Fast
                                                                           : NbdSession::ZeroSpeed::Any);
  }
  if (writing.cookie < 0) return std::nullopt;
  return writing;
}

// Removes completed requests. Zeros that were refused go back to `todo`, for the next method.
void NbdConnection::retire(std::vector<Writing>& in_flight, std::deque<WriteRequest>& todo,
                           std::optional<Writing>& failed) {
  const std::size_t retired = std::erase_if(in_flight, [&](Writing& command) {
    const NbdSession::Completion completion = session_.completion(command.cookie);
    if (completion.error_number == 0) return completion.done;
    command.error_number = completion.error_number;
    switch (command.method) {
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
  if (retired != 0) session_.expect_answer();
}

void NbdConnection::flush() {
  if (is_dead()) {
    throw Error(Outcome::Io, fmt::format("{}: cannot flush: the connection was lost: {}", session_.uri(),
                                         session_.reason()));
  }
  if (!session_.features().flush) return;
  session_.expect_answer(kFlushTimeouts);
  complete(session_.start_flush(), "cannot flush");
}

}  // namespace qchain
