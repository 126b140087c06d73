#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/progress.h"
#include "extent/error.h"

namespace qchain {

using Json = nlohmann::ordered_json;

/// Where a command's words go: results to standard output, as text or as one JSON document; notes,
/// warnings, errors and progress to standard error. Notes and warnings are in the document too.
class Console {
 public:
  /// `command` names the schema of the document: "qchain.COMMAND".
  Console(std::string command, bool json, ProgressStyle style)
      : command_(std::move(command)), json_(json), style_(style) {}

  bool json() const noexcept { return json_; }
  ProgressStyle progress_style() const noexcept { return style_; }

  /// Worth knowing.
  void note(const std::string& message);
  /// Something is not as it should be, and the work goes on.
  void warn(const std::string& message);
  void error(const std::string& message);

  /// What was asked for is done, and stands: from now on, words that cannot be written are a warning.
  void result_stands() noexcept { result_stands_ = true; }
  /// Standard output is taken by a disk: text goes to standard error.
  void use_standard_error() noexcept { to_standard_error_ = true; }
  /// Hands on what was printed. Throws Error (Io).
  void flush();

  /// Text for people; dropped where a document is printed.
  void print(const std::string& text);
  /// The one document: schema, version, outcome and what `fields` holds. Dropped where text is printed.
  void document(Outcome outcome, const Json& fields);
  /// The same with a last field `name`, an array that can be too long to be held in memory: `next` gives
  /// its elements, null at the end.
  void document(Outcome outcome, const Json& fields, const char* name, const std::function<Json()>& next);

 private:
  Json with_frame(Outcome outcome, const Json& fields) const;
  void tell(const char* severity, const std::string& message, std::vector<std::string>& list);

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
