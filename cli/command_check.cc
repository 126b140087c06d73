#include "cli/command_check.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <thread>

#include "cli/api/text.h"
#include "extent/error.h"
#include "extent/cancellation.h"

namespace qchain {

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kPoll{20};
constexpr std::chrono::milliseconds kGrace{400};  // from SIGTERM to SIGKILL

// Attributes and file actions for posix_spawn.
class SpawnSettings {
 public:
  SpawnSettings() {
    posix_spawn_file_actions_init(&actions_);
    posix_spawn_file_actions_addopen(&actions_, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions_, STDERR_FILENO, STDOUT_FILENO);
    posix_spawn_file_actions_addclosefrom_np(&actions_, STDERR_FILENO + 1);

    posix_spawnattr_init(&attributes_);
    posix_spawnattr_setpgroup(&attributes_, 0);
    // Ignored signals would be inherited.
    sigset_t signals;
    sigemptyset(&signals);
    posix_spawnattr_setsigmask(&attributes_, &signals);
    for (const int signal : {SIGPIPE, SIGXFSZ, SIGHUP, SIGINT, SIGTERM}) sigaddset(&signals, signal);
    posix_spawnattr_setsigdefault(&attributes_, &signals);
    posix_spawnattr_setflags(&attributes_,
                             POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  }
  ~SpawnSettings() {
    posix_spawn_file_actions_destroy(&actions_);
    posix_spawnattr_destroy(&attributes_);
  }
  SpawnSettings(const SpawnSettings&) = delete;
  SpawnSettings& operator=(const SpawnSettings&) = delete;

  const posix_spawn_file_actions_t* actions() const noexcept { return &actions_; }
  const posix_spawnattr_t* attributes() const noexcept { return &attributes_; }

 private:
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

[[noreturn]] void cannot(const char* what, int error_number) {
  throw Error(Outcome::Inconclusive,
              system_error(fmt::format("--still-running: cannot {}", what), error_number).what());
}

// A shell command and its process group; the destructor kills both, unless the command has ended.
class ShellCommand {
 public:
  explicit ShellCommand(const std::string& command) {
    const SpawnSettings settings;
    std::string shell = "sh", option = "-c", text = command;
    char* const argv[] = {shell.data(), option.data(), text.data(), nullptr};
    const int error = posix_spawn(&pid_, "/bin/sh", settings.actions(), settings.attributes(), argv, environ);
    if (error != 0) cannot("start /bin/sh", error);
  }
  ~ShellCommand() {
    if (!reaped_) end();
  }
  ShellCommand(const ShellCommand&) = delete;
  ShellCommand& operator=(const ShellCommand&) = delete;

  // Whether the shell has ended. Does not reap it, so that its process id still identifies the group.
  bool ended() const {
    siginfo_t info{};
    while (waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) != 0) {
      if (errno != EINTR) cannot("wait for the command", errno);
    }
    return info.si_pid != 0;
  }

  // The waitpid() status of a shell that has ended.
  int reap() noexcept {
    int status = -1;
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    reaped_ = true;
    return status;
  }

 private:
  void end() noexcept {
    kill(-pid_, SIGTERM);
    const Clock::time_point deadline = Clock::now() + kGrace;
    siginfo_t info{};
    while (info.si_pid == 0 && Clock::now() < deadline) {
      std::this_thread::sleep_for(kPoll);
      if (waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) != 0 && errno != EINTR)
        break;
    }
    kill(-pid_, SIGKILL);  // processes of the group that ignored SIGTERM
    reap();
  }

  pid_t pid_ = -1;
  bool reaped_ = false;
};

std::string how_it_ended(int status) {
  if (WIFSIGNALED(status)) return fmt::format("was killed by signal {}", WTERMSIG(status));
  return fmt::format("exited with {}", WEXITSTATUS(status));
}

class CommandOwner : public JobOwner {
 public:
  CommandOwner(std::string command, std::chrono::seconds timeout)
      : command_(std::move(command)), timeout_(timeout) {}

  void require_running() override {
    const Clock::time_point deadline = Clock::now() + timeout_;
    throw_if_cancelled();
    ShellCommand command(command_);
    while (!command.ended()) {
      throw_if_cancelled();
      if (Clock::now() >= deadline) {
        fail(
            fmt::format("did not finish within {} s, so it is not known whether the job is still running; "
                        "see --owner-timeout",
                        timeout_.count()));
      }
      std::this_thread::sleep_for(kPoll);
    }
    const int status = command.reap();
    throw_if_cancelled();
    if (status != 0) fail(how_it_ended(status) + ", so the job may no longer be running");
  }

  std::string description() const override { return "command"; }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(Outcome::Inconclusive, fmt::format("--still-running: \"{}\" {}", escaped(command_), what));
  }

  std::string command_;
  std::chrono::seconds timeout_;
};

}  // namespace

std::unique_ptr<JobOwner> open_command_owner(const std::string& command, std::chrono::seconds timeout) {
  // If SIGCHLD was inherited as ignored, the exit status of a child would be lost.
  std::signal(SIGCHLD, SIG_DFL);
  auto owner = std::make_unique<CommandOwner>(command, timeout);
  owner->require_running();
  return owner;
}

}  // namespace qchain
