#include "cli/command_line.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/program_options/errors.hpp>
#include <boost/program_options/options_description.hpp>
#include <boost/program_options/parsers.hpp>
#include <cstdio>
#include <string_view>

#include "cli/suggestion.h"

namespace qchain {

namespace po = boost::program_options;

namespace {

constexpr std::size_t kLineLength = 100;
constexpr const char* kHelp = "help";

using Occurs = OptionDescription::Occurs;

po::options_description described(const std::vector<OptionDescription>& options) {
  po::options_description all;
  for (const OptionDescription& option : options) {
    std::string names = option.name;
    if (option.short_name != 0) names += std::string{',', option.short_name};
    if (option.argument.empty()) {
      all.add_options()(names.c_str(), "");
    } else {
      auto* const text = po::value<std::string>();
      if (option.occurs == Occurs::AsList) text->multitoken();
      all.add_options()(names.c_str(), text);
    }
  }
  return all;
}

std::vector<po::option> parsed(const std::vector<std::string>& words, const po::options_description& known) {
  using Style = po::command_line_style::style_t;
  constexpr int kStyle = Style::unix_style & ~Style::allow_guessing;
  return po::command_line_parser(words).options(known).style(kStyle).run().options;
}

// Rewords Boost's message in the style of our other messages.
std::string what_of(const po::invalid_command_line_syntax& error) {
  const std::string name = error.get_option_name();
  switch (error.kind()) {
    case po::invalid_syntax::missing_parameter:
    case po::invalid_syntax::empty_adjacent_parameter:
      return fmt::format("option {} needs a value", name);
    case po::invalid_syntax::extra_parameter:
      return fmt::format("option {} takes no value", name);
    default:
      return error.what();
  }
}

std::string left_column(const OptionDescription& option) {
  std::string text = "  ";
  if (option.short_name != 0) text += fmt::format("-{}, ", option.short_name);
  text += "--" + option.name;
  return option.argument.empty() ? text : text + ' ' + option.argument;
}

}  // namespace

CommandLine::CommandLine(std::string command, std::string usage, std::string summary)
    : command_(std::move(command)), usage_(std::move(usage)), summary_(std::move(summary)) {}

void CommandLine::positional(const char* name, std::string& target) {
  positionals_.push_back({name, &target, true});
}

void CommandLine::optional_positional(const char* name, std::string& target) {
  positionals_.push_back({name, &target, false});
}

CommandLine::Option& CommandLine::add(const char* names, std::string argument, Take take, std::string help) {
  const std::string_view both(names);
  const std::size_t comma = both.find(',');
  OptionDescription shown;
  shown.name = both.substr(0, comma);
  if (comma != std::string_view::npos) shown.short_name = both.at(comma + 1);
  shown.argument = std::move(argument);
  shown.help = std::move(help);
  shown.group = group_;
  return options_.emplace_back(Option{std::move(shown), std::move(take)});
}

void CommandLine::flag(const char* names, bool& target, std::string help) {
  add(
      names, {}, [&target](const std::string&) { target = true; }, std::move(help));
}

void CommandLine::early_flag(const char* names, bool& target, std::string help) {
  add(
      names, {}, [&target](const std::string&) { target = true; }, std::move(help))
      .early = true;
}

void CommandLine::value(const char* names, std::string argument, std::string& target, std::string help) {
  value(
      names, std::move(argument), [&target](const std::string& text) { target = text; }, std::move(help));
}

void CommandLine::value(const char* names, std::string argument, Take take, std::string help) {
  add(names, std::move(argument), std::move(take), std::move(help));
}

void CommandLine::values(const char* names, std::string argument, std::vector<std::string>& target,
                         std::string help) {
  const auto take = [&target](const std::string& text) { target.push_back(text); };
  add(names, std::move(argument), take, std::move(help)).shown.occurs = Occurs::Repeatedly;
}

void CommandLine::list(const char* names, std::string argument, std::vector<std::string>& target,
                       std::string help) {
  const auto take = [&target](const std::string& text) { target.push_back(text); };
  add(names, std::move(argument), take, std::move(help)).shown.occurs = Occurs::AsList;
}

void CommandLine::help_flag() {
  add(
      kHelp, {}, [](const std::string&) {}, "print this help and exit");
}

Error CommandLine::wrong(const std::string& what) const {
  return Error(Outcome::Usage,
               fmt::format("{}: {} Run 'qchain {} --help' for details", command_, what, command_));
}

Error CommandLine::unknown(const std::string& option) const {
  std::vector<std::string> names;
  for (const OptionDescription& known : options()) names.push_back(known.name);
  const std::size_t dashes = std::min(option.find_first_not_of('-'), option.size());
  const std::string near = suggestion_for(std::string_view(option).substr(dashes), names);
  if (near.empty()) return wrong(fmt::format("unknown option {}.", option));
  return wrong(fmt::format("unknown option {}; did you mean --{}?", option, near));
}

CommandLine::Option* CommandLine::find(const std::string& name) {
  const auto found = std::ranges::find_if(options_, [&](const Option& o) { return o.shown.name == name; });
  return found == options_.end() ? nullptr : &*found;
}

bool CommandLine::has(const std::string& name) const {
  return std::ranges::any_of(options_, [&](const Option& o) { return o.shown.name == name && o.times != 0; });
}

// Follows the parser as far as it understands the words, and skips the others.
void CommandLine::set_early_flags(const std::vector<std::string>& words) {
  for (std::size_t i = 0; i < words.size() && words[i] != "--"; ++i) {
    const auto is_this = [&](const Option& o) {
      return words[i] == "--" + o.shown.name ||
             (o.shown.short_name != 0 && words[i] == std::string{'-', o.shown.short_name});
    };
    const auto found = std::ranges::find_if(options_, is_this);
    if (found == options_.end()) continue;
    if (found->early) found->take({});
    if (!found->shown.argument.empty()) ++i;  // skips its value, whatever that looks like
  }
}

// Separates option values from positional arguments.
void CommandLine::take_in(const std::vector<std::string>& words) {
  try {
    for (const po::option& word : parsed(words, described(options()))) {
      Option* const option = find(word.string_key);
      std::vector<std::string>& values = option != nullptr ? option->given : words_;
      values.insert(values.end(), word.value.begin(), word.value.end());
      if (option == nullptr) continue;
      if (++option->times > 1 && option->shown.occurs == Occurs::Once) {
        throw wrong(fmt::format("option --{} is given more than once.", option->shown.name));
      }
    }
  } catch (const po::unknown_option& error) {
    const std::string word = error.get_option_name();
    throw unknown(word.substr(0, word.find('=')));
  } catch (const po::invalid_command_line_syntax& error) {
    throw wrong(what_of(error) + '.');
  } catch (const po::error& error) {
    throw wrong(fmt::format("{}.", error.what()));
  }
  if (words_.size() > positionals_.size()) {
    throw wrong(fmt::format("unexpected argument \"{}\".", escaped(words_[positionals_.size()])));
  }
}

void CommandLine::set_positionals() const {
  for (std::size_t i = 0; i < positionals_.size(); ++i) {
    const Positional& positional = positionals_[i];
    if (i < words_.size()) *positional.target = words_[i];
    const bool missing = i < words_.size() ? words_[i].empty() : positional.required;
    if (missing) {
      throw wrong(fmt::format("missing {} (usage: qchain {} {}).", positional.name, command_, usage_));
    }
  }
}

bool CommandLine::parse(const std::vector<std::string>& words) {
  set_early_flags(words);
  take_in(words);
  if (has(kHelp)) {
    std::fputs(help().c_str(), stdout);
    return false;
  }
  set_positionals();
  for (const Option& option : options_) {
    try {
      if (option.shown.argument.empty() && option.times != 0) option.take({});
      for (const std::string& value : option.given) option.take(value);
    } catch (const Error& error) {
      throw Error(error.outcome(), fmt::format("--{}: {}", option.shown.name, error.what()));
    }
  }
  if (check_) check_(*this);
  return true;
}

std::vector<OptionDescription> CommandLine::options() const {
  std::vector<OptionDescription> shown;
  for (const Option& option : options_) shown.push_back(option.shown);
  return shown;
}

std::string CommandLine::help() const {
  std::string text =
      fmt::format("Usage: qchain {} {}\n\n{}", command_, usage_, wrapped(summary_, 0, kLineLength));
  std::size_t column = 0;
  for (const Option& option : options_) column = std::max(column, left_column(option.shown).size() + 2);
  std::string_view group;
  for (const Option& option : options_) {
    if (option.shown.group != group) text += fmt::format("\n{}:\n", group = option.shown.group);
    text += fmt::format("{:{}}{}", left_column(option.shown), column,
                        wrapped(option.shown.help, column, kLineLength));
  }
  return text;
}

}  // namespace qchain
