#include "tests/nbd/fake_server.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>

namespace qchain::tests {

namespace {

// The numbers of the protocol.
constexpr std::uint64_t kGreeting = 0x4e42444d41474943, kOptionMagic = 0x49484156454f5054;
constexpr std::uint64_t kOptionReplyMagic = 0x3e889045565a9;
constexpr std::uint32_t kRequestMagic = 0x25609513, kSimpleMagic = 0x67446698;
constexpr std::uint32_t kStructuredMagic = 0x668e33ef;
constexpr std::uint16_t kFixedNewstyleWithoutZeroes = 3;
constexpr std::uint32_t kOptAbort = 2, kOptInfo = 6, kOptGo = 7, kOptStructured = 8, kOptList = 9,
                        kOptSet = 10;
constexpr std::uint32_t kRepAck = 1, kRepInfo = 3, kRepContext = 4, kRepUnsupported = 0x80000001,
                        kRepUnknown = 0x80000006;
constexpr std::uint16_t kInfoExport = 0, kInfoBlockSize = 3;
constexpr std::uint16_t kHasFlags = 1, kReadOnly = 2, kSendDf = 1U << 7U, kMultiConn = 1U << 8U;
constexpr std::uint16_t kDisconnect = 2;

struct Hangup {};

Bytes receive(int socket, std::size_t length) {
  Bytes bytes(length);
  for (std::size_t got = 0; got < length;) {
    const ssize_t n = recv(socket, bytes.data() + got, length - got, 0);
    if (n <= 0) throw Hangup();
    got += static_cast<std::size_t>(n);
  }
  return bytes;
}

// Takes integers and texts from the front of what was received.
class Parser {
 public:
  explicit Parser(Bytes bytes) : bytes_(std::move(bytes)) {}

  std::uint64_t integer(unsigned size) {
    std::uint64_t value = 0;
    for (const std::byte byte : take(size)) value = value << 8U | std::to_integer<unsigned>(byte);
    return value;
  }
  std::uint16_t u16() { return static_cast<std::uint16_t>(integer(2)); }
  std::uint32_t u32() { return static_cast<std::uint32_t>(integer(4)); }
  std::uint64_t u64() { return integer(8); }
  std::string text(std::size_t length) {
    std::string value;
    for (const std::byte byte : take(length)) value += static_cast<char>(byte);
    return value;
  }

 private:
  std::span<const std::byte> take(std::size_t length) {
    if (length > bytes_.size() - at_) throw Hangup();
    at_ += length;
    return std::span(bytes_).subspan(at_ - length, length);
  }

  const Bytes bytes_;
  std::size_t at_ = 0;
};

class Handshake {
 public:
  Handshake(int socket, const Offer& offer) : socket_(socket), wire_(socket, false), offer_(offer) {}

  // Returns when the client has opened the export. Counts the questions for contexts.
  void run(std::atomic<unsigned>& context_lists) {
    if (offer_.greeting == Offer::Greeting::Hangup) throw Hangup();
    if (offer_.greeting == Offer::Greeting::Silent) receive(socket_, 1);  // which never comes
    if (offer_.greeting == Offer::Greeting::Garbage) wire_.send(Packet().text("HTTP/1.1 200 OK\r\n\r\n"));
    if (offer_.dribbling == Offer::Step::Greeting) wire_.dribble();
    wire_.wait(offer_.thinking);
    wire_.send(Packet().u64(kGreeting).u64(kOptionMagic).u16(kFixedNewstyleWithoutZeroes));
    receive(socket_, sizeof(std::uint32_t));  // the client's flags
    std::uint32_t option = 0;
    do {
      Parser head(receive(socket_, 16));
      if (head.u64() != kOptionMagic) throw Hangup();
      option = head.u32();
      if (option == kOptList) ++context_lists;
      negotiate(option, Parser(receive(socket_, head.u32())));
    } while (option != kOptGo || !offer_.known);
  }

 private:
  void negotiate(std::uint32_t option, Parser payload) {
    const bool known = option == kOptAbort || option == kOptGo || option == kOptInfo ||
                       (offer_.structured && option >= kOptStructured && option <= kOptSet);
    const bool opening = option == kOptGo || option == kOptInfo;
    if (offer_.dribbling == Offer::Step::List && option == kOptList) wire_.dribble();
    if (offer_.dribbling == Offer::Step::Go && option == kOptGo) wire_.dribble();
    wire_.wait(offer_.thinking);
    if (offer_.endless == Offer::Step::List && option == kOptList) {
      send_for_ever(packet(option, kRepContext, Packet().u32(0).text("qemu:x")));
    }
    if (offer_.endless == Offer::Step::Go && option == kOptGo) {
      send_for_ever(packet(option, kRepInfo, Packet().u16(kInfoExport).u64(offer_.size).u16(kHasFlags)));
    }
    if (opening && !offer_.known) return reply(option, kRepUnknown, {});
    if (option == kOptList || option == kOptSet) send_contexts(option, payload);
    if (opening) send_info(option);
    if (option == kOptGo) offer_.opened();
    reply(option, known ? kRepAck : kRepUnsupported, {});
    if (option == kOptAbort) throw Hangup();
  }

  static Packet packet(std::uint32_t option, std::uint32_t type, const Packet& payload) {
    const auto length = static_cast<std::uint32_t>(payload.bytes.size());
    return Packet().u64(kOptionReplyMagic).u32(option).u32(type).u32(length).raw(payload.bytes);
  }
  void reply(std::uint32_t option, std::uint32_t type, const Packet& payload) {
    wire_.send(packet(option, type, payload));
  }
  // Faster than any client can take it, so that the client never has to wait.
  [[noreturn]] void send_for_ever(const Packet& one) {
    Packet many;
    for (int i = 0; i < 1000; ++i) many.raw(one.bytes);
    for (;;) wire_.send(many);
  }

  // All contexts for a list; for a set, those that were asked for.
  void send_contexts(std::uint32_t option, Parser& payload) {
    payload.text(payload.u32());  // the export's name
    std::vector<std::string> queries(payload.u32());
    for (std::string& query : queries) query = payload.text(payload.u32());
    for (std::uint32_t i = 0; i < offer_.contexts.size(); ++i) {
      const std::string& name = offer_.contexts[i];
      const bool asked = std::ranges::find(queries, name) != queries.end() && name != offer_.refused;
      if (option == kOptSet && !asked) continue;
      send_context(option, option == kOptSet ? i + 1 : 0, name);
    }
  }

  void send_context(std::uint32_t option, std::uint32_t id, const std::string& name) {
    reply(option, kRepContext, Packet().u32(id).text(name));
  }

  void send_info(std::uint32_t option) {
    const unsigned flags =
        kHasFlags | kReadOnly | (offer_.df ? kSendDf : 0U) | (offer_.multi_conn ? kMultiConn : 0U);
    reply(option, kRepInfo,
          Packet().u16(kInfoExport).u64(offer_.size).u16(static_cast<std::uint16_t>(flags)));
    if (offer_.minimum_block == 0) return;
    reply(option, kRepInfo,
          Packet()
              .u16(kInfoBlockSize)
              .u32(offer_.minimum_block)
              .u32(std::max(offer_.minimum_block, 4096U))
              .u32(offer_.maximum_block));
  }

  const int socket_;
  Wire wire_;
  const Offer& offer_;
};

Request receive_request(int socket, unsigned connection) {
  Parser head(receive(socket, 28));
  if (head.u32() != kRequestMagic) throw Hangup();
  Request request;
  request.connection = connection;
  request.flags = head.u16();
  request.type = head.u16();
  request.cookie = head.u64();
  request.offset = head.u64();
  request.length = head.u32();
  if (request.type == kDisconnect) throw Hangup();
  return request;
}

}  // namespace

Packet& Packet::text(const std::string& value) { return raw(std::as_bytes(std::span(value))); }

Packet& Packet::raw(std::span<const std::byte> value) {
  bytes.insert(bytes.end(), value.begin(), value.end());
  return *this;
}

Packet& Packet::integer(std::uint64_t value, unsigned size) {
  for (unsigned i = size; i > 0; --i) bytes.push_back(static_cast<std::byte>(value >> (8 * (i - 1))));
  return *this;
}

void Wire::chunk(const Request& request, std::uint16_t type, const Packet& payload, Last last) {
  send(Packet()
           .u32(kStructuredMagic)
           .u16(static_cast<std::uint16_t>(last))
           .u16(type)
           .u64(request.cookie)
           .u32(static_cast<std::uint32_t>(payload.bytes.size()))
           .raw(payload.bytes));
}

void Wire::data(const Request& request, std::uint64_t offset, const Bytes& bytes, Last last) {
  if (structured_) return chunk(request, kChunkData, Packet().u64(offset).raw(bytes), last);
  send(Packet().u32(kSimpleMagic).u32(0).u64(request.cookie).raw(bytes));
}

void Wire::hole(const Request& request, std::uint64_t offset, std::uint32_t length, Last last) {
  chunk(request, kChunkHole, Packet().u64(offset).u32(length), last);
}

void Wire::status(const Request& request, std::uint32_t context, const StatusEntries& entries, Last last) {
  Packet payload;
  payload.u32(context);
  for (const auto& [length, flags] : entries) payload.u32(length).u32(flags);
  chunk(request, kChunkStatus, payload, last);
}

void Wire::error(const Request& request, std::uint32_t number, Last last) {
  if (structured_) return chunk(request, kChunkError, Packet().u32(number).u16(0), last);
  send(Packet().u32(kSimpleMagic).u32(number).u64(request.cookie));
}

void Wire::send(const Packet& packet) {
  std::span<const std::byte> rest(packet.bytes);
  while (!rest.empty()) {
    if (dribbling_) wait(kDribble);
    const ssize_t n = ::send(socket_, rest.data(), dribbling_ ? 1 : rest.size(), MSG_NOSIGNAL);
    if (n < 0) throw Hangup();
    rest = rest.subspan(static_cast<std::size_t>(n));
  }
}

void Wire::wait(std::chrono::milliseconds time) const {
  pollfd client{socket_, POLLRDHUP, 0};
  if (poll(&client, 1, static_cast<int>(time.count())) > 0) throw Hangup();
}

void Wire::hang_up() { throw Hangup(); }

FakeServer::FakeServer(Bytes disk) : disk_(std::move(disk)) {
  offer.size = disk_.size();
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = folder_ / "s";
  std::memcpy(address.sun_path, path.c_str(), std::min(path.size(), sizeof address.sun_path - 1));
  listening_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (bind(listening_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      listen(listening_, 16) != 0) {
    throw std::runtime_error(path + ": cannot listen");
  }
  acceptor_ = std::jthread([this] { accept_all(); });
}

FakeServer::~FakeServer() {
  stop();
  for (std::jthread& thread : threads_) thread.join();
  for (const int socket : sockets_) close(socket);
}

void FakeServer::stop() {
  if (listening_ < 0) return;
  shutdown(listening_, SHUT_RDWR);  // ends accept()
  acceptor_.join();
  close(listening_);
  listening_ = -1;
  for (unsigned i = 0; i < connections_; ++i) drop(i);
}

void FakeServer::drop(unsigned connection) {
  const std::lock_guard lock(sockets_in_use_);
  shutdown(sockets_.at(connection), SHUT_RDWR);
}

void FakeServer::accept_all() {
  for (;;) {
    const int socket = accept4(listening_, nullptr, nullptr, SOCK_CLOEXEC);
    if (socket < 0) return;
    const std::lock_guard lock(sockets_in_use_);
    sockets_.push_back(socket);
    threads_.emplace_back([this, socket, connection = connections_.load()] {
      try {
        serve(socket, connection);
      } catch (const Hangup&) {
        shutdown(socket, SHUT_RDWR);
      }
    });
    ++connections_;
  }
}

void FakeServer::serve(int socket, unsigned connection) {
  Offer adapted = offer;
  adapt(adapted, connection);
  Handshake(socket, adapted).run(context_lists_);
  Wire wire(socket, adapted.structured);
  for (;;) {
    const Request request = receive_request(socket, connection);
    (request.type == kStatus ? on_status : on_read)(wire, request);
  }
}

void FakeServer::answer(Wire& wire, const Request& request) const {
  if (request.type == kStatus) {
    for (std::uint32_t i = 0; i < offer.contexts.size(); ++i) {
      wire.status(request, i + 1, {{request.length, 0}}, Last::No);
    }
    return wire.done(request);
  }
  wire.data(request, request.offset, slice(disk_, request.offset, request.length), Last::Yes);
}

FakeServer::Handler FakeServer::once(Handler handler) const {
  return [this, handler = std::move(handler), first = std::make_shared<std::atomic<bool>>(true)](
             Wire& wire, const Request& request) {
    first->exchange(false) ? handler(wire, request) : answer(wire, request);
  };
}

}  // namespace qchain::tests
