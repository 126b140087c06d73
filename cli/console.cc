#include "cli/console.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "cli/exit_code.h"
#include "cli/api/text.h"

namespace qchain {

namespace {

constexpr int kSchemaVersion = 1;

}  // namespace

void Console::write_out(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::ferror(stdout) != 0) {
    fail_to_write(errno);
  }
}

void Console::flush() {
  if (std::fflush(stdout) != 0) fail_to_write(errno);
}

void Console::fail_to_write(int error_number) {
  const Error failure = system_error("standard output: cannot write", error_number);
  if (!result_stands_) throw failure;
  if (!std::exchange(cannot_write_, true)) warn(failure.what());
}

void Console::print_message(const char* severity, const std::string& message,
                            std::vector<std::string>& list) {
  const std::string safe = escaped(message);
  list.push_back(safe);
  std::fputs(fmt::format("qchain: {}{}\n", severity, safe).c_str(), stderr);
}

void Console::note(const std::string& message) { print_message("note: ", message, notes_); }
void Console::warn(const std::string& message) { print_message("warning: ", message, warnings_); }
void Console::error(const std::string& message) { print_message("", message, errors_); }

// Whatever a name brings along that nobody escaped ends here.
void Console::print(const std::string& unchecked) {
  if (json_) return;
  const std::string text = escaped_lines(unchecked);
  if (to_standard_error_) {
    std::fputs(text.c_str(), stderr);
  } else {
    write_out(text);
  }
}

Json Console::with_frame(Outcome outcome, const Json& fields) const {
  Json document;
  document["schema"] = "qchain." + command_;
  document["version"] = kSchemaVersion;
  document["tool"] = "qchain " QCHAIN_VERSION;
  document["outcome"] = to_string(outcome);
  document["exit_code"] = exit_code(outcome);
  document.update(fields);
  document["notes"] = notes_;
  document["warnings"] = warnings_;
  if (!errors_.empty()) document["errors"] = errors_;
  return document;
}

void Console::document(Outcome outcome, const Json& fields) {
  if (json_) write_out(with_frame(outcome, fields).dump(2) + '\n');
}

void Console::document(Outcome outcome, const Json& fields, const char* name,
                       const std::function<Json()>& next) {
  if (!json_) return;
  std::string open = with_frame(outcome, fields).dump(2);
  open.resize(open.rfind("\n}"));  // `open` always has fields
  write_out(fmt::format("{},\n  \"{}\": [", open, name));
  const char* separator = "\n    ";
  for (Json element = next(); !element.is_null(); element = next()) {
    write_out(separator + element.dump());
    separator = ",\n    ";
  }
  write_out("\n  ]\n}\n");
}

}  // namespace qchain
