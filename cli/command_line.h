// The command line of one command: a table in which one statement declares an option, binds it to a variable
// and describes it. Parser and help use the table.
//
//   CommandLine line("check", "IMAGE [options]", "Checks the metadata of every layer of a chain.");
//   line.positional("IMAGE", o.image);
//   line.flag("strict", o.strict, "treat leaks as a failure");
//   line.value("output,o", "FILE", o.output, "file to write");
//   line.value("connections", "N", o.connections, number(1, 16), "NBD connections");
//   if (!line.parse(words)) return;  // --help was printed
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "cli/api/text.h"
#include "extent/error.h"

namespace qchain {

/// An option as the user sees it: for help, manual pages and shell completion.
struct OptionDescription {
  enum class Occurs {
    Once,
    Repeatedly,
    AsList,  ///< Repeatedly, each time with one or more values.
  };
  std::string name;      ///< "output", for --output.
  char short_name = 0;   ///< 'o', for -o; 0: none.
  std::string argument;  ///< The placeholder of its value, such as "FILE"; empty: it is a flag.
  std::string help;
  std::string group;  ///< The heading in the help.
  Occurs occurs = Occurs::Once;
};

/// The variables that options are bound to have to outlive it.
class CommandLine {
 public:
  using Take = std::function<void(const std::string& value)>;

  /// `usage` follows "qchain COMMAND". `summary`: paragraphs, each without line breaks.
  CommandLine(std::string command, std::string usage, std::string summary);

  /// Required and optional positional arguments, in the order of their declaration.
  void positional(const char* name, std::string& target);
  void optional_positional(const char* name, std::string& target);

  /// Options declared from here on are listed under this heading.
  void group(std::string heading) { group_ = std::move(heading); }

  /// Declares options. `names` is "output", or "output,o" with a short name. An option that is not given
  /// leaves its variable unchanged. A reader (`take`, `read`) throws Error for an invalid value; the option's
  /// name is prepended to the message.
  void flag(const char* names, bool& target, std::string help);
  /// A flag that parse() sets even if it throws, because it selects how errors are reported.
  void early_flag(const char* names, bool& target, std::string help);
  void value(const char* names, std::string argument, std::string& target, std::string help);
  void value(const char* names, std::string argument, Take take, std::string help);
  template <class Target, class Read>
  void value(const char* names, std::string argument, Target& target, Read read, std::string help) {
    value(
        names, std::move(argument), [&target, read](const std::string& text) { target = read(text); },
        std::move(help));
  }
  void values(const char* names, std::string argument, std::vector<std::string>& target, std::string help);
  void list(const char* names, std::string argument, std::vector<std::string>& target, std::string help);
  /// --help makes parse() print help().
  void help_flag();

  /// A check of all options together, after all variables are set.
  void afterwards(std::function<void(const CommandLine&)> check) { check_ = std::move(check); }

  /// Sets the variables, in the order of their declaration. Returns false if --help was given: then the help
  /// was printed, and only early flags are set. Throws Error (Usage), or what a reader throws.
  bool parse(const std::vector<std::string>& words);
  /// Whether an option was given.
  bool has(const std::string& name) const;

  std::vector<OptionDescription> options() const;
  std::string help() const;

 private:
  struct Option {
    OptionDescription shown;
    Take take;
    bool early = false;
    unsigned times = 0;                // how often it was given
    std::vector<std::string> given{};  // its values
  };
  struct Positional {
    const char* name;
    std::string* target;
    bool required;
  };

  Option& add(const char* names, std::string argument, Take take, std::string help);
  void set_early_flags(const std::vector<std::string>& words);
  void take_in(const std::vector<std::string>& words);
  void set_positionals() const;
  Option* find(const std::string& name);
  Error wrong(const std::string& what) const;
  Error unknown(const std::string& option) const;

  std::string command_;
  std::string usage_;
  std::string summary_;
  std::string group_ = "Options";
  std::vector<Option> options_;
  std::vector<Positional> positionals_;
  std::vector<std::string> words_;  // positional arguments
  std::function<void(const CommandLine&)> check_;
};

/// A reader of numbers from `least` to `most`.
inline auto number(unsigned least, unsigned most) {
  return [least, most](const std::string& text) { return parse_number(text, least, most); };
}

}  // namespace qchain
