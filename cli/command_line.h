// The command line of one command: a table in which each option is declared, bound to its variable and
// explained in one statement. Parser and help are made of it.
//
//   CommandLine line("check", "IMAGE [options]", "Checks the metadata of every layer of a chain.");
//   line.positional("IMAGE", o.image);
//   line.flag("strict", o.strict, "treat leaks as a failure");
//   line.value("output,o", "FILE", o.output, "file to write");
//   line.value("connections", "N", o.connections, number(1, 16), "NBD connections");
//   if (!line.parse(words)) return;  // --help: it was printed
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "cli/api/text.h"
#include "extent/error.h"

namespace qchain {

/// One option as its user sees it: for help, manual pages and shell completion.
struct OptionDescription {
  enum class Occurs {
    Once,
    Repeatedly,
    AsList,  ///< Repeatedly, and each time with one or more values.
  };
  std::string name;      ///< "output", for --output.
  char short_name = 0;   ///< 'o', for -o; 0: none.
  std::string argument;  ///< What its value is called, such as "FILE"; empty: it is a flag.
  std::string help;
  std::string group;  ///< The heading in the help that it stands under.
  Occurs occurs = Occurs::Once;
};

/// Variables that options are bound to have to outlive the command line.
class CommandLine {
 public:
  using Take = std::function<void(const std::string& value)>;

  /// `usage` is what follows "qchain COMMAND". `summary` is text of paragraphs, without line breaks in them.
  CommandLine(std::string command, std::string usage, std::string summary);

  /// A word without a name that has to be there, and one that may be. In the order of their declaration.
  void positional(const char* name, std::string& target);
  void optional_positional(const char* name, std::string& target);

  /// Options declared from here on are listed under this heading.
  void group(std::string heading) { group_ = std::move(heading); }

  /// Options. `names` is "output", or "output,o" where there is a short name too. What is not given leaves
  /// its variable as it was. A reader (`take`, `read`) throws Error for a value that it does not understand;
  /// the option's name is put before the message.
  void flag(const char* names, bool& target, std::string help);
  /// A flag that parse() sets even where it throws: it says how to report errors.
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
  /// --help, which makes parse() print help().
  void help_flag();

  /// What to check of the options together, once all variables are set.
  void afterwards(std::function<void(const CommandLine&)> check) { check_ = std::move(check); }

  /// Sets the variables, in the order of their declaration. False where --help was asked for: it was printed,
  /// and no variable is set but early flags. Throws Error, which is of Usage unless a reader throws another
  /// one.
  bool parse(const std::vector<std::string>& words);
  /// Whether an option was among the words.
  bool has(const std::string& name) const;

  std::vector<OptionDescription> options() const;
  std::string help() const;

 private:
  struct Option {
    OptionDescription shown;
    Take take;
    bool early = false;
    unsigned times = 0;                // that it was given
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
  std::vector<std::string> words_;  // those that are of no option
  std::function<void(const CommandLine&)> check_;
};

/// Reads a number from `least` to `most`.
inline auto number(unsigned least, unsigned most) {
  return [least, most](const std::string& text) { return parse_number(text, least, most); };
}

}  // namespace qchain
