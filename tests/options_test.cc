// The command lines: one table of options that is parsed, bound and explained.
#include "cli/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <regex>
#include <set>
#include <sstream>

#include "cli/chaininfo.h"
#include "cli/check.h"
#include "cli/command_line.h"
#include "cli/digest.h"
#include "cli/pull.h"
#include "cli/restore.h"
#include "cli/selftest.h"
#include "cli/suggestion.h"
#include "cli/verify.h"
#include "tests/parsed.h"
#include "tests/random.h"

namespace qchain::tests {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

using Words = std::vector<std::string>;

// The error for these words; empty: none.
template <class Options>
std::string error_of(const Words& words) {
  try {
    parsed<Options>(words);
  } catch (const Error& error) {
    EXPECT_EQ(error.outcome(), Outcome::Usage);
    return error.what();
  }
  return {};
}

std::string pull_error(const Words& more) {
  Words words{"nbd://localhost/vda", "-o", "out.qcow2"};
  words.insert(words.end(), more.begin(), more.end());
  return error_of<PullOptions>(words);
}

// Suggestions.

TEST(Suggestion, DistanceCountsEditsAndSwaps) {
  EXPECT_EQ(edit_distance("", ""), 0U);
  EXPECT_EQ(edit_distance("", "abc"), 3U);
  EXPECT_EQ(edit_distance("parent", "parent"), 0U);
  EXPECT_EQ(edit_distance("parnet", "parent"), 1U);   // a swap
  EXPECT_EQ(edit_distance("paent", "parent"), 1U);    // an insertion
  EXPECT_EQ(edit_distance("parrent", "parent"), 1U);  // a deletion
  EXPECT_EQ(edit_distance("pbrent", "parent"), 1U);   // a substitution
  EXPECT_EQ(edit_distance("apernt", "parent"), 2U);
  EXPECT_EQ(edit_distance("digest", "bitmap"), 5U);
}

TEST(Suggestion, IsTheOnlyOneThatIsNear) {
  const Words names{"pull", "verify", "verbose", "check", "chaininfo", "parent", "parent-format", "map"};
  EXPECT_EQ(suggestion_for("pul", names), "pull");
  EXPECT_EQ(suggestion_for("lpul", names), "pull");
  EXPECT_EQ(suggestion_for("chainifno", names), "chaininfo");
  EXPECT_EQ(suggestion_for("chiinnfos", names), "") << "three edits";
  EXPECT_EQ(suggestion_for("cha", names), "chaininfo") << "a prefix";
  EXPECT_EQ(suggestion_for("ch", names), "") << "a prefix of two letters";
  EXPECT_EQ(suggestion_for("ver", names), "") << "an ambiguous prefix";
  EXPECT_EQ(suggestion_for("paren", names), "parent") << "the nearer of two";
  EXPECT_EQ(suggestion_for("ab", names), "") << "nothing of it is in \"map\" at its place";
  EXPECT_EQ(suggestion_for("cat", {"bat", "rat"}), "") << "equally near";
  EXPECT_EQ(suggestion_for("cat", {"bat", "rat", "cats"}), "cats");
  EXPECT_EQ(suggestion_for("", names), "");
  EXPECT_EQ(suggestion_for(std::string(1 << 20, 'p'), names), "");
}

TEST(UnknownOption, IsNamedAndANearOneSuggested) {
  EXPECT_EQ(pull_error({"--parnet", "full.qcow2"}),
            "pull: unknown option --parnet; did you mean --parent? Run 'qchain pull --help' for details");
  EXPECT_EQ(pull_error({"--parnet=full.qcow2"}), pull_error({"--parnet", "full.qcow2"}));
  EXPECT_THAT(pull_error({"-parent", "full.qcow2"}), HasSubstr("did you mean --parent?"));
  EXPECT_THAT(pull_error({"--require"}), HasSubstr("did you mean --require-read-only?"));
  EXPECT_THAT(pull_error({"--hlep"}), HasSubstr("did you mean --help?"));
  EXPECT_EQ(pull_error({"--frob"}), "pull: unknown option --frob. Run 'qchain pull --help' for details");
  EXPECT_EQ(pull_error({"--tls", "x"}), "pull: unknown option --tls. Run 'qchain pull --help' for details");
  EXPECT_THAT(pull_error({"-x"}), HasSubstr("unknown option -x."));
  EXPECT_THAT(error_of<CheckOptions>({"a", "--parent", "b"}), HasSubstr("check: unknown option --parent."));
}

// Binding.

TEST(Bound, EveryKindOfOption) {
  const auto o = parsed<PullOptions>({"nbd://localhost/vda",
                                      "-o",
                                      "out.qcow2",
                                      "--parent=full.qcow2",
                                      "--parent-format",
                                      "raw",
                                      "--cluster-size",
                                      "128K",
                                      "--compress",
                                      "zlib:3",
                                      "--digest",
                                      "sha512",
                                      "--check-clean",
                                      "0.5",
                                      "--on-missed",
                                      "fail",
                                      "--extended-l2",
                                      "--connections",
                                      "3",
                                      "--timeout=+7",
                                      "--owner-timeout",
                                      "9",
                                      "--still-running",
                                      "true",
                                      "--json",
                                      "--progress",
                                      "none"});
  EXPECT_EQ(o.request.uri, "nbd://localhost/vda");
  EXPECT_EQ(o.request.output, "out.qcow2");
  EXPECT_EQ(o.request.parent, "full.qcow2");
  EXPECT_EQ(o.request.parent_is_raw, true);
  EXPECT_EQ(o.request.cluster_size, std::uint64_t{128} << 10);
  EXPECT_EQ(o.request.compression, "zlib:3");
  EXPECT_EQ(o.request.digest, "sha512");
  EXPECT_EQ(o.request.check_clean.mode, CheckClean::Mode::Fraction);
  EXPECT_EQ(o.request.check_clean.fraction, 0.5);
  EXPECT_EQ(o.request.on_missed, OnMissed::Fail);
  EXPECT_TRUE(o.request.extended_l2);
  EXPECT_FALSE(o.request.replace);
  EXPECT_EQ(o.request.nbd.connections, 3U);
  EXPECT_EQ(o.request.nbd.timeout, 7U);
  EXPECT_EQ(o.request.nbd.requests, 0U);
  EXPECT_EQ(o.owner.timeout, std::chrono::seconds(9));
  EXPECT_EQ(o.owner.still_running, "true");
  EXPECT_TRUE(o.common.json);
  EXPECT_EQ(o.common.progress, ProgressStyle::None);
}

TEST(Bound, DefaultsStayWhereNothingIsGiven) {
  const auto o = parsed<PullOptions>({"nbd://localhost/vda", "-oout.qcow2"});
  EXPECT_EQ(o.request.output, "out.qcow2");
  EXPECT_EQ(o.format, ImageFormat::Qcow2);
  EXPECT_EQ(o.owner.timeout, std::chrono::seconds(60));
  EXPECT_EQ(o.request.compression, "none");
  EXPECT_EQ(o.request.digest, "");
  EXPECT_FALSE(o.common.json);
  EXPECT_EQ(
      parsed<PullOptions>({"nbd://localhost/vda", "-o", "out.qcow2", "--digest", "none"}).request.digest,
      "none");
  EXPECT_FALSE(parsed<RestoreOptions>({"a", "b"}).request.as_layer);
}

TEST(Bound, RepeatedValuesAndLists) {
  const auto o = parsed<VerifyOptions>(
      {"a", "--trust-key", "1.pub", "--trust-key=2.pub", "--backing-root", "/x", "--backing-root", "/y"});
  EXPECT_THAT(o.trust_keys, ElementsAre("1.pub", "2.pub"));
  EXPECT_THAT(o.common.open.backing_roots, ElementsAre("/x", "/y"));
  const auto sum = parsed<VerifyOptions>({"--combine", "1.json", "2.json", "--json", "--combine", "3.json"});
  EXPECT_THAT(sum.combine, ElementsAre("1.json", "2.json", "3.json"));
  EXPECT_TRUE(sum.common.json);
  EXPECT_THAT(pull_error({"--parent", "a", "--parent", "b"}), HasSubstr("--parent is given more than once"));
  EXPECT_THAT(pull_error({"--force", "--force"}), HasSubstr("--force is given more than once"));
}

TEST(Bound, WordsAfterTwoDashesAreNotOptions) {
  const auto o = parsed<RestoreOptions>({"--force", "--", "--json", "-o"});
  EXPECT_EQ(o.request.image, "--json");
  EXPECT_EQ(o.request.destination, "-o");
  EXPECT_FALSE(o.common.json);
  EXPECT_TRUE(o.request.replace);
}

// What is refused.

TEST(Refused, NumbersThatAreInvalidOrOutOfRange) {
  EXPECT_EQ(pull_error({"--connections", "many"}), "--connections: \"many\": invalid number");
  for (const char* const text : {"", "-1", "1x", " 1", "0x1", "++1", "1.5"}) {
    EXPECT_THAT(pull_error({"--requests", text}), HasSubstr("--requests: \"")) << text;
  }
  EXPECT_EQ(pull_error({"--connections", "0"}), "--connections: 0 is out of range (1 to 16)");
  EXPECT_EQ(pull_error({"--connections", "1"}), "");
  EXPECT_EQ(pull_error({"--connections", "16"}), "");
  EXPECT_THAT(pull_error({"--connections", "17"}), HasSubstr("out of range"));
  EXPECT_EQ(pull_error({"--requests", "1024"}), "");
  EXPECT_THAT(pull_error({"--requests", "1025"}), HasSubstr("out of range (1 to 1024)"));
  EXPECT_THAT(pull_error({"--timeout", "99999999999999999999"}), HasSubstr("out of range (1 to 86400)"));
  EXPECT_THAT(pull_error({"--owner-timeout", "3601"}), HasSubstr("out of range (1 to 3600)"));
  EXPECT_EQ(parsed<VerifyOptions>({"a", "--sample", "5/5"}).selection.part, 5U);
  EXPECT_EQ(error_of<VerifyOptions>({"a", "--sample", "6/5"}), "--sample: 6 is out of range (1 to 5)");
  EXPECT_THAT(error_of<VerifyOptions>({"a", "--sample", "1/1000001"}), HasSubstr("--sample: 1000001 is"));
  EXPECT_EQ(parsed<VerifyOptions>({"a", "--max-duration", "0"}).max_duration, 0U);
  EXPECT_THAT(error_of<VerifyOptions>({"a", "--max-duration", "soon"}), HasSubstr("invalid number"));
}

TEST(Refused, OtherValuesWithTheOptionsName) {
  EXPECT_THAT(pull_error({"--cluster-size", "64k x"}), HasSubstr("--cluster-size: \"64k x\": invalid size"));
  EXPECT_EQ(pull_error({"--format", "vmdk"}), "--format: unknown image format \"vmdk\"; choose qcow2 or raw");
  EXPECT_THAT(pull_error({"--digest", "md5"}), HasSubstr("--digest: unknown digest algorithm"));
  EXPECT_THAT(pull_error({"--compress", "lz4"}), HasSubstr("--compress: unknown compression type \"lz4\""));
  EXPECT_THAT(pull_error({"--libvirt", ""}), HasSubstr("--libvirt: must not be empty"));
  EXPECT_THAT(pull_error({"--parent-format", "qcow2"}), HasSubstr("--parent-format requires --parent"));
}

TEST(Refused, WordsThatAreMissingOrTooMany) {
  EXPECT_EQ(
      error_of<PullOptions>({}),
      "pull: missing URI (usage: qchain pull URI -o OUT [options]). Run 'qchain pull --help' for details");
  EXPECT_EQ(error_of<PullOptions>({""}), error_of<PullOptions>({}));
  EXPECT_EQ(error_of<PullOptions>({"nbd://localhost"}), "missing output file: use -o FILE");
  EXPECT_THAT(error_of<RestoreOptions>({"a"}), HasSubstr("restore: missing DEST"));
  EXPECT_THAT(error_of<VerifyOptions>({}), HasSubstr("missing IMAGE"));
  EXPECT_THAT(error_of<CheckOptions>({"a", "b"}), HasSubstr("unexpected argument \"b\""));
  EXPECT_THAT(pull_error({"--parent"}), HasSubstr("option --parent needs a value"));
  EXPECT_THAT(pull_error({"--parent="}), HasSubstr("option --parent needs a value"));
  EXPECT_THAT(pull_error({"--force=yes"}), HasSubstr("option --force takes no value"));
}

// What is known of --json where parsing fails.

bool asks_for_json(const Words& words) {
  PullOptions o;
  EXPECT_THROW(command_line_for(o).parse(words), Error) << testing::PrintToString(words);
  return o.common.json;
}

TEST(Json, IsKnownWhereParsingFails) {
  EXPECT_TRUE(asks_for_json({"--json"}));
  EXPECT_TRUE(asks_for_json({"--frob", "--json"}));
  EXPECT_TRUE(asks_for_json({"--json", "a", "b", "--parent"}));
  EXPECT_TRUE(asks_for_json({"a", "-o", "b", "--json", "--connections", "0"}));
  EXPECT_TRUE(asks_for_json({"a", "--sign-key=", "--json"}));
  EXPECT_FALSE(asks_for_json({"--frob"}));
  EXPECT_FALSE(asks_for_json({"--frob", "--sign-key", "--json"})) << "a value";
  EXPECT_FALSE(asks_for_json({"--frob", "-o", "--json"})) << "a value";
  EXPECT_FALSE(asks_for_json({"--frob", "--", "--json"})) << "not an option";
}

class AnyWords : public RandomTest {};

// Whether the words are valid or not: --json is found where the parser finds it.
TEST_F(AnyWords, JsonIsFoundWhereTheParserFindsIt) {
  int right = 0;
  int with_json = 0;
  for (int round = 0; round < 20000; ++round) {
    Words words;
    for (std::uint64_t i = 0, count = random.below(7); i < count; ++i) {
      words.push_back(random.one_of<std::string>({"--json", "--", "a", "-", "-o", "-ob", "--out", "--out=c",
                                                  "--list", "--list=d", "--more", "--flag"}));
    }
    bool json = false;
    bool flag = false;
    std::string out;
    std::string first;
    Words list;
    Words more;
    CommandLine line("test", "", "");
    line.optional_positional("FIRST", first);
    line.value("out,o", "OUT", out, "");
    line.values("list", "X", list, "");
    line.list("more", "X...", more, "");
    line.flag("flag", flag, "");
    line.early_flag("json", json, "");
    try {
      line.parse(words);
    } catch (const Error&) {
      continue;
    }
    ++right;
    with_json += json ? 1 : 0;
    EXPECT_EQ(json, line.has("json")) << testing::PrintToString(words);
  }
  EXPECT_GT(right, 1000);
  EXPECT_GT(with_json, 100);
}

// Help.

template <class Options>
CommandLine line_of() {
  static Options options;
  return command_line_for(options);
}

const std::vector<CommandLine>& all_lines() {
  static const std::vector<CommandLine> lines{line_of<PullOptions>(),      line_of<VerifyOptions>(),
                                              line_of<ChaininfoOptions>(), line_of<CheckOptions>(),
                                              line_of<RestoreOptions>(),   line_of<DigestCommandOptions>(),
                                              line_of<SelftestOptions>()};
  return lines;
}

TEST(Help, ListsEveryOptionOnce) {
  for (const CommandLine& line : all_lines()) {
    const std::string help = line.help();
    const std::vector<OptionDescription> options = line.options();
    std::set<std::string> names;
    for (const OptionDescription& option : options) {
      EXPECT_TRUE(names.insert(option.name).second) << option.name << " is declared twice";
      EXPECT_THAT(option.help, Not(IsEmpty())) << option.name;
      const std::string shown = (option.short_name != 0 ? std::string{'-', option.short_name} + ", " : "") +
                                "--" + option.name + (option.argument.empty() ? "" : " " + option.argument);
      std::istringstream lines(help);
      int count = 0;
      for (std::string text; std::getline(lines, text);)
        count += text.starts_with("  " + shown + "  ") ? 1 : 0;
      EXPECT_EQ(count, 1) << shown << " in\n" << help;
    }
    EXPECT_EQ(names.count("help") + names.count("json"), 2U) << help;
  }
}

TEST(Help, FitsTerminalsAndLosesNoWord) {
  for (const CommandLine& line : all_lines()) {
    std::istringstream lines(line.help());
    for (std::string text; std::getline(lines, text);) {
      EXPECT_LE(text.size(), 100U) << text;
      EXPECT_FALSE(text.ends_with(' ')) << text;
    }
    const std::string flat = std::regex_replace(line.help(), std::regex("\\s+"), " ");
    for (const OptionDescription& option : line.options())
      EXPECT_THAT(flat, HasSubstr(" " + option.help + " "));
  }
}

TEST(Help, DescribesOptionsForOthers) {
  const std::vector<OptionDescription> options = line_of<PullOptions>().options();
  const auto output = std::ranges::find(options, "output", &OptionDescription::name);
  ASSERT_NE(output, options.end());
  EXPECT_EQ(output->short_name, 'o');
  EXPECT_EQ(output->argument, "OUT");
  EXPECT_EQ(output->group, "Options");
  const auto roots = std::ranges::find(options, "backing-root", &OptionDescription::name);
  ASSERT_NE(roots, options.end());
  EXPECT_EQ(roots->occurs, OptionDescription::Occurs::Repeatedly);
  EXPECT_EQ(roots->group, "Common options");
}

TEST(Help, IsPrintedWhateverElseIsGiven) {
  PullOptions o;
  testing::internal::CaptureStdout();
  EXPECT_FALSE(command_line_for(o).parse({"--connections", "none", "--help"}));
  std::fflush(stdout);
  EXPECT_EQ(testing::internal::GetCapturedStdout(), command_line_for(o).help());
}

TEST(Wrapped, BreaksBetweenWords) {
  EXPECT_EQ(wrapped("", 0, 10), "\n");
  EXPECT_EQ(wrapped("one two three", 0, 7), "one two\nthree\n");
  EXPECT_EQ(wrapped("one two three", 2, 9), "one two\n  three\n");
  EXPECT_EQ(wrapped("one two three", 2, 8), "one\n  two\n  three\n");
  EXPECT_EQ(wrapped("one\ntwo three", 0, 10), "one\ntwo three\n");
  EXPECT_EQ(wrapped("longer-than-that a", 0, 4), "longer-than-that\na\n");
}

}  // namespace
}  // namespace qchain::tests
