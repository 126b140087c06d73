#include "tests/nbd/server_process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <cstring>
#include <stdexcept>
#include <system_error>

namespace qchain::tests {

namespace {

constexpr int kFirstPassedSocket = 3;  // what LISTEN_FDS counts from

[[noreturn]] void fail(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

std::vector<char*> pointers(const Words& words) {
  std::vector<char*> result;
  for (const std::string& word : words) result.push_back(const_cast<char*>(word.c_str()));
  result.push_back(nullptr);
  return result;
}

// Starts a program that dies with this thread and finds `listening` as its socket. Only what is
// safe between fork and exec happens there: the test may have threads.
pid_t spawn(const Words& words, int listening) {
  const std::vector<char*> arguments = pointers(words);
  std::array<char, 32> listen_pid{"LISTEN_PID="};
  std::array<char, 16> listen_fds{"LISTEN_FDS=1"};
  std::vector<char*> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.push_back(*entry);
  environment.insert(environment.end(), {listen_pid.data(), listen_fds.data(), nullptr});

  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) fail("fork");
  if (pid > 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);
  char* const digits = listen_pid.data() + std::strlen(listen_pid.data());
  *std::to_chars(digits, listen_pid.end() - 1, getpid()).ptr = '\0';
  if (listening == kFirstPassedSocket) {
    fcntl(listening, F_SETFD, 0);  // dup2() would leave it as it is: closed by exec
  } else {
    dup2(listening, kFirstPassedSocket);
  }
  execvpe(arguments[0], arguments.data(), environment.data());
  _exit(127);
}

int listen_on(int family, const void* address, socklen_t length) {
  const int listening = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listening < 0) fail("socket");
  if (bind(listening, static_cast<const sockaddr*>(address), length) != 0) fail("bind");
  if (listen(listening, 16) != 0) fail("listen");
  return listening;
}

}  // namespace

ServerProcess::ServerProcess(int listening, const Words& words) : pid_(spawn(words, listening)) {
  close(listening);
}

ServerProcess ServerProcess::on_unix(const std::string& socket, const Words& words) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket.size() >= sizeof address.sun_path) throw std::runtime_error(socket + ": too long");
  std::memcpy(address.sun_path, socket.c_str(), socket.size());
  unlink(socket.c_str());
  return ServerProcess(listen_on(AF_UNIX, &address, sizeof address), words);
}

ServerProcess ServerProcess::on_tcp(const Words& words) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int listening = listen_on(AF_INET, &address, sizeof address);
  socklen_t length = sizeof address;
  if (getsockname(listening, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    fail("getsockname");
  }
  ServerProcess server(listening, words);
  server.port_ = ntohs(address.sin_port);
  return server;
}

void ServerProcess::kill() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

void ServerProcess::freeze() const {
  ::kill(pid_, SIGSTOP);
  waitpid(pid_, nullptr, WUNTRACED);
}

std::string unix_uri(const std::string& socket, const std::string& name) {
  return "nbd+unix:///" + name + "?socket=" + socket;
}

}  // namespace qchain::tests
