// qchain: the table of commands, and the handling of errors.

#include <fcntl.h>
#include <fmt/format.h>
#include <malloc.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "cli/chaininfo.h"
#include "cli/check.h"
#include "cli/command_line.h"
#include "cli/console.h"
#include "cli/digest.h"
#include "cli/exit_code.h"
#include "cli/hints.h"
#include "cli/pull.h"
#include "cli/restore.h"
#include "cli/selftest.h"
#include "cli/suggestion.h"
#include "cli/api/text.h"
#include "cli/verify.h"
#include "extent/cancellation.h"

namespace qchain {
namespace {

using Words = std::vector<std::string>;

// Runs one command. Its options select how results and errors are reported.
template <class Options>
Outcome run(const char* name, const Words& words, Outcome (*command)(const Options&, Console&)) {
  Options options;
  std::optional<Console> made;
  // After parsing, successful or not, it is known whether --json was given.
  const auto console = [&]() -> Console& {
    if (!made) made.emplace(name, options.common.json, options.common.progress);
    return *made;
  };
  const auto fail = [&](Outcome outcome, const std::string& message) {
    console().error(message);
    try {
      console().document(outcome, Json::object());
      console().flush();
    } catch (const Error& error) {
      console().error(error.what());
    }
    return outcome;
  };
  try {
    if (!command_line_for(options).parse(words)) {
      console().flush();  // the help
      return Outcome::Done;
    }
    if (options.common.open.force_share) {
      console().warn(
          "--force-share: if an image changes while it is read, the result is not a consistent point in "
          "time");
    }
    const Outcome outcome = command(options, console());
    console().flush();
    return outcome;
  } catch (const Error& error) {
    return fail(error.outcome(), with_hint(error));
  } catch (const std::bad_alloc&) {
    return fail(Outcome::Io, fmt::format("{}: out of memory", name));
  } catch (const std::exception& error) {
    return fail(Outcome::Io, fmt::format("{}: {}", name, error.what()));
  }
}

struct Command {
  const char* name;
  const char* summary;
  std::function<Outcome(const char*, const Words&)> run;
};

const std::array<Command, 7>& commands() {
  static const std::array<Command, 7> table{{
      {"pull", "copy a live export into the next layer of a chain",
       [](const char* name, const Words& words) { return run(name, words, pull); }},
      {"verify", "verify a chain: metadata, stored digests, the live export",
       [](const char* name, const Words& words) { return run(name, words, verify); }},
      {"chaininfo", "show the layers of a chain",
       [](const char* name, const Words& words) { return run(name, words, chaininfo); }},
      {"check", "check the metadata of every layer of a chain",
       [](const char* name, const Words& words) { return run(name, words, check); }},
      {"restore", "write the disk that a chain describes to a file, device or export",
       [](const char* name, const Words& words) { return run(name, words, restore); }},
      {"digest", "print the content digest of an image, a raw file or an NBD export",
       [](const char* name, const Words& words) { return run(name, words, digest); }},
      {"selftest", "check that damage to a small chain is detected",
       [](const char* name, const Words& words) { return run(name, words, selftest); }},
  }};
  return table;
}

std::string help() {
  std::string text =
      "Usage: qchain COMMAND ...\n\n"
      "Turns live backup exports into chains of qcow2 images, and verifies them.\n\n";
  for (const Command& command : commands()) {
    text += fmt::format("  {:10} {}\n", command.name, command.summary);
  }
  return text +
         "\nRun 'qchain COMMAND --help' for details; --version prints the version.\n"
         "Exit codes: 0 done, 1 mismatch or corruption, 2 usage, 3 I/O error, 4 incomplete,\n"
         "5 manifest or signature bad, 6 inconclusive, 130 and 143 interrupted.\n";
}

std::string unknown_command(const std::string& word) {
  std::vector<std::string> known{"--help", "--version"};
  for (const Command& command : commands()) known.emplace_back(command.name);
  const std::string near = suggestion_for(word, known);
  const std::string hint = near.empty() ? "." : fmt::format("; did you mean \"{}\"?", near);
  return fmt::format("unknown command \"{}\"{} Run 'qchain --help' for the list", escaped(word), hint);
}

Outcome say(const char* text) {
  if (std::fputs(text, stdout) < 0 || std::fflush(stdout) != 0) {
    throw system_error("standard output: cannot write", errno);
  }
  return Outcome::Done;
}

Outcome dispatch(const Words& words) {
  if (words.empty()) {
    std::fputs(help().c_str(), stderr);
    return Outcome::Usage;
  }
  if (words.front() == "--help" || words.front() == "-h" || words.front() == "help") {
    return say(help().c_str());
  }
  if (words.front() == "--version") {
    return say("qchain " QCHAIN_VERSION "\n");
  }
  const auto* const found =
      std::ranges::find_if(commands(), [&](const Command& c) { return c.name == words.front(); });
  if (found == commands().end()) {
    Console("main", false, ProgressStyle::None).error(unknown_command(words.front()));
    return Outcome::Usage;
  }
  return found->run(found->name, Words(words.begin() + 1, words.end()));
}

// If descriptor 0, 1 or 2 is closed, a file opened later would get it, and messages would be written into
// that file. Opens /dev/null in their place, in a mode in which accidental reads or writes fail.
void fill_standard_descriptors() {
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(descriptor, F_GETFD) >= 0) continue;
    const int opened = open("/dev/null", descriptor == STDIN_FILENO ? O_WRONLY : O_RDONLY);
    if (opened != descriptor) std::_Exit(exit_code(Outcome::Io));
  }
}

Cancellation by_signal;

void request_stop(int signal_number) {
  by_signal.request(signal_number == SIGINT ? Outcome::Interrupted : Outcome::Terminated);
}

// Signals may be ignored on purpose, as with nohup.
void handle(int signal_number) {
  struct sigaction action {};
  if (sigaction(signal_number, nullptr, &action) == 0 && action.sa_handler == SIG_IGN) return;
  action = {};
  action.sa_handler = request_stop;
  sigaction(signal_number, &action, nullptr);
}

void set_up_process() {
  fill_standard_descriptors();
  for (const int signal_number : {SIGINT, SIGTERM, SIGHUP}) handle(signal_number);
  // Without this, glibc keeps freed tables, which would be half of our memory.
  mallopt(M_MMAP_THRESHOLD, 60 << 10);
  // Broken pipes and file size limits are reported as errors.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  // A chain can have more layers than the soft limit has descriptors.
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
}

}  // namespace
}  // namespace qchain

int main(int argc, char** argv) {
  using namespace qchain;
  set_up_process();
  const CancellationScope scope(&by_signal);
  try {
    Words words(argv + std::min(argc, 1), argv + argc);
    const std::string called = argc > 0 ? std::filesystem::path(argv[0]).filename().string() : "";
    const bool version = !words.empty() && words.front() == "--version";
    if (called == "chaininfo" && !version) words.insert(words.begin(), called);
    return exit_code(dispatch(words));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "qchain: %s\n", error.what());  // needs no memory
  }
  return exit_code(Outcome::Io);
}
