// Real servers.
#pragma once

#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

namespace qchain::tests {

/// A program, found by PATH, and its arguments.
using Words = std::vector<std::string>;

/// A server that was given a socket which listens already, as systemd does it (LISTEN_FDS): a
/// client can connect at once, and no port is taken twice. It is killed with this object, and dies
/// with the thread that started it.
class ServerProcess {
 public:
  /// Replaces a socket of that name.
  static ServerProcess on_unix(const std::string& socket, const Words& words);
  /// On 127.0.0.1, at a port that was free.
  static ServerProcess on_tcp(const Words& words);
  ~ServerProcess() { kill(); }
  ServerProcess(ServerProcess&& other) noexcept : pid_(std::exchange(other.pid_, -1)), port_(other.port_) {}

  std::string port() const { return std::to_string(port_); }

  /// As kill -9. When it returns, the process is gone, and its connections with it.
  void kill();
  /// Makes the server silent: it keeps its connections, and does nothing any more.
  void freeze() const;

 private:
  ServerProcess(int listening, const Words& words);

  pid_t pid_ = -1;
  unsigned port_ = 0;
};

/// The URI of an export on a Unix socket.
std::string unix_uri(const std::string& socket, const std::string& name = {});

}  // namespace qchain::tests
