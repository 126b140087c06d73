#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/progress.h"
#include "extent/error.h"

namespace qchain {

using Json = nlohmann::ordered_json;

/// The output of a command: results go to standard output, as text or as one JSON document; notes, warnings,
/// errors and progress go to standard error. Notes and warnings are in the document too.
class Console {
 public:
  /// `command` names the schema of the document: "qchain.COMMAND".
  Console(std::string command, bool json, ProgressStyle style)
      : command_(std::move(command)), json_(json), style_(style) {}

  bool json() const noexcept { return json_; }
  ProgressStyle progress_style() const noexcept { return style_; }

  /// Information for the user.
  void note(const std::string& message);
  /// A problem that does not stop the work.
  void warn(const std::string& message);
  void error(const std::string& message);

  /// The work is done and cannot be undone: from now on, failures to write output are only warnings.
  void result_stands() noexcept { result_stands_ = true; }
  /// Standard output is used for a disk image: text goes to standard error.
  void use_standard_error() noexcept { to_standard_error_ = true; }
  /// Flushes standard output. Throws Error (Io).
  void flush();

  /// Prints text; ignored in JSON mode.
  void print(const std::string& text);
  /// Prints the JSON document: schema, version, outcome and `fields`. Ignored in text mode.
  void document(Outcome outcome, const Json& fields);
  /// The same with a last field `name`, an array that may not fit in memory: `next` returns its elements,
  /// then null.
  void document(Outcome outcome, const Json& fields, const char* name, const std::function<Json()>& next);

 private:
  Json with_frame(Outcome outcome, const Json& fields) const;
  void print_message(const char* severity, const std::string& message, std::vector<std::string>& list);

  std::string command_;
  bool json_;
  void write_out(const std::string& text);
  void fail_to_write(int error_number);

  ProgressStyle style_;
  bool to_standard_error_ = false;
  bool result_stands_ = false;
  bool cannot_write_ = false;
  std::vector<std::string> notes_;
  std::vector<std::string> warnings_;
  std::vector<std::string> errors_;
};

}  // namespace qchain
