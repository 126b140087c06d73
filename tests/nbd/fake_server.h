// An NBD server that replies as a test wants, right or wrong: fixed newstyle handshake, structured replies
// and meta contexts, on a Unix socket, a thread for each connection.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/nbd/disk.h"
#include "tests/nbd/server_process.h"

namespace qchain::tests {

/// What goes over the wire: integers are big-endian there.
struct Packet {
  Bytes bytes;

  Packet& u16(std::uint16_t value) { return integer(value, 2); }
  Packet& u32(std::uint32_t value) { return integer(value, 4); }
  Packet& u64(std::uint64_t value) { return integer(value, 8); }
  Packet& text(const std::string& value);
  Packet& raw(std::span<const std::byte> value);

 private:
  Packet& integer(std::uint64_t value, unsigned size);
};

/// What the server offers during the handshake.
struct Offer {
  enum class Greeting { Proper, Silent, Garbage, Hangup };
  enum class Step { Greeting, List, Go, Never };
  Greeting greeting = Greeting::Proper;
  Step dribbling = Step::Never;           ///< From this one on, the handshake comes byte by byte.
  std::chrono::milliseconds thinking{0};  ///< Before each answer.
  bool known = true;                      ///< Whether there is such an export.
  std::uint64_t size = 0;
  bool multi_conn = true;
  bool structured = true;
  bool df = true;
  std::vector<std::string> contexts{"base:allocation"};  ///< Their ids are 1, 2, ...
  std::string refused;                                   ///< One of them that is listed, and then not set.
  Step endless = Step::Never;                            ///< List or Go: the answer has no end.
  std::function<void()> opened = [] {};      ///< Called before a client learns that the export is open.
  std::uint32_t minimum_block = 0;           ///< 0: none is advertised.
  std::uint32_t maximum_block = 32U << 20U;  ///< Advertised with a minimum only.
};

inline constexpr std::uint16_t kRead = 0;
inline constexpr std::uint16_t kStatus = 7;

struct Request {
  unsigned connection = 0;  ///< 0 is the first one that came: the control connection.
  std::uint16_t flags = 0;
  std::uint16_t type = 0;
  std::uint64_t cookie = 0;
  std::uint64_t offset = 0;
  std::uint32_t length = 0;
};

/// A length and its flags, as they are sent.
using StatusEntries = std::vector<std::pair<std::uint32_t, std::uint32_t>>;

enum class Last : std::uint16_t { No = 0, Yes = 1 };

/// The server's end of a connection, after the handshake.
class Wire {
 public:
  static constexpr std::uint16_t kChunkNone = 0, kChunkData = 1, kChunkHole = 2, kChunkStatus = 5,
                                 kChunkError = 0x8001, kChunkErrorOffset = 0x8002;

  Wire(int socket, bool structured) : socket_(socket), structured_(structured) {}

  /// A chunk of a structured reply.
  void chunk(const Request& request, std::uint16_t type, const Packet& payload, Last last);
  /// One with data of the disk, or, without structured replies, a simple reply.
  void data(const Request& request, std::uint64_t offset, const Bytes& bytes, Last last);
  void hole(const Request& request, std::uint64_t offset, std::uint32_t length, Last last);
  void status(const Request& request, std::uint32_t context, const StatusEntries& entries, Last last);
  /// With an errno value of the protocol, such as 5.
  void error(const Request& request, std::uint32_t number, Last last);
  /// A chunk without content.
  void done(const Request& request) { chunk(request, kChunkNone, {}, Last::Yes); }
  void send(const Packet& packet);
  /// From now on, each byte is sent by itself, kDribble after the one before.
  void dribble() { dribbling_ = true; }
  static constexpr std::chrono::milliseconds kDribble{40};
  /// Lets time pass, unless the client goes away.
  void wait(std::chrono::milliseconds time) const;
  /// Ends the connection.
  [[noreturn]] void hang_up();

 private:
  int socket_;
  bool structured_;
  bool dribbling_ = false;
};

class FakeServer {
 public:
  using Handler = std::function<void(Wire&, const Request&)>;

  /// Serves `disk` correctly, and reports only data, unless set otherwise. Call the setters before the first
  /// client connects. Handlers run in the threads of their connections, and may return without a reply.
  explicit FakeServer(Bytes disk);
  ~FakeServer();
  FakeServer(const FakeServer&) = delete;
  FakeServer& operator=(const FakeServer&) = delete;

  Offer offer;
  /// Changes the offer for the connection of that number.
  std::function<void(Offer&, unsigned connection)> adapt = [](Offer&, unsigned) {};
  Handler on_read = [this](Wire& wire, const Request& request) { answer(wire, request); };
  Handler on_status = [this](Wire& wire, const Request& request) { answer(wire, request); };

  /// A handler that passes the first request to `handler`, and answers the others correctly.
  Handler once(Handler handler) const;

  /// The correct reply.
  void answer(Wire& wire, const Request& request) const;
  const Bytes& disk() const { return disk_; }
  std::string uri() const { return unix_uri(folder_ / "s", "vda"); }
  unsigned connections() const { return connections_; }
  /// How many clients have asked which meta contexts there are.
  unsigned context_lists() const { return context_lists_; }
  /// Ends all connections; no further one is accepted.
  void stop();
  /// Ends the connection of that number.
  void drop(unsigned connection);

 private:
  void accept_all();
  void serve(int socket, unsigned connection);

  const Bytes disk_;
  Folder folder_;
  int listening_ = -1;
  std::atomic<unsigned> connections_{0};
  std::atomic<unsigned> context_lists_{0};
  std::mutex sockets_in_use_;
  std::vector<int> sockets_;
  std::vector<std::jthread> threads_;
  std::jthread acceptor_;
};

}  // namespace qchain::tests
