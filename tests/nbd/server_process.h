// Real servers, and the tools that make disks for them.
#pragma once

#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

namespace qchain::testing {

/// A folder that is removed with all that is in it.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  std::string path(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// A program and its arguments, found by PATH.
using Words = std::vector<std::string>;

/// Runs a program, which has to succeed, or std::runtime_error is thrown.
void run(const Words& words);

/// A server that was given a socket which listens already, as systemd does it (LISTEN_FDS): a client can
/// connect at once, and no port is taken twice. It is killed with this object, and dies with the test.
class ServerProcess {
 public:
  /// Replaces a socket of that name.
  static ServerProcess on_unix(const std::string& socket, const Words& words);
  /// On 127.0.0.1, at a port that was free.
  static ServerProcess on_tcp(const Words& words);
  ~ServerProcess() { kill(); }
  ServerProcess(ServerProcess&& other) noexcept
      : pid_(std::exchange(other.pid_, -1)), port_(other.port_) {}

  std::string port() const { return std::to_string(port_); }

  /// As kill -9. When it returns, the process is gone, and its connections with it.
  void kill();
  /// Makes the server silent: it keeps its connections, and does nothing, until resume().
  void pause() const;
  void resume() const;

 private:
  ServerProcess(int listening, const Words& words);

  pid_t pid_ = -1;
  unsigned port_ = 0;
};

/// The URI of an export on a Unix socket.
std::string unix_uri(const std::string& socket, const std::string& name = {});

}  // namespace qchain::testing
