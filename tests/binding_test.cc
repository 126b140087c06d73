// Each option sets its own variable, and no other.
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "cli/chaininfo.h"
#include "cli/check.h"
#include "cli/command_line.h"
#include "cli/digest.h"
#include "cli/pull.h"
#include "cli/restore.h"
#include "cli/selftest.h"
#include "cli/verify.h"
#include "tests/support.h"

namespace qchain::tests {
namespace {

using Words = std::vector<std::string>;

std::string text(bool value) { return value ? "set" : ""; }
std::string text(unsigned value) { return std::to_string(value); }
std::string text(std::uint64_t value) { return std::to_string(value); }
std::string text(ProgressStyle value) { return std::to_string(static_cast<int>(value)); }
std::string text(ImageFormat value) { return std::to_string(static_cast<int>(value)); }
std::string text(OnMissed value) { return std::to_string(static_cast<int>(value)); }
std::string text(std::chrono::seconds value) { return std::to_string(value.count()); }
std::string text(const CheckClean& value) { return std::to_string(static_cast<int>(value.mode)); }
std::string text(const ByteRange& value) {
  return std::to_string(value.offset) + ':' + std::to_string(value.length);
}
std::string text(const Words& values) {
  std::string joined;
  for (const std::string& value : values) joined += value + ' ';
  return joined;
}
template <class T>
std::string text(const std::optional<T>& value) {
  return value ? text(*value) : "";
}

// An option, a value to give it (empty: it is a flag), its variable, and that once the option was given.
template <class Options>
struct Binding {
  std::string option;
  std::string value;
  std::function<std::string(const Options&)> variable;
  std::string set;
};

template <class Options>
using Bindings = std::vector<Binding<Options>>;

template <class Options>
void add_report(Bindings<Options>& all) {
  all.push_back({"json", "", [](const Options& o) { return text(o.common.json); }, "set"});
  all.push_back({"progress", "none", [](const Options& o) { return text(o.common.progress); },
                 text(ProgressStyle::None)});
}

template <class Options>
void add_common(Bindings<Options>& all) {
  add_report(all);
  all.push_back(
      {"backing-root", "/x", [](const Options& o) { return text(o.common.open.backing_roots); }, "/x "});
  all.push_back({"force-share", "", [](const Options& o) { return text(o.common.open.force_share); }, "set"});
  all.push_back(
      {"allow-data-file", "", [](const Options& o) { return text(o.common.open.allow_data_file); }, "set"});
}

template <class Options, class Nbd>
void add_nbd(Bindings<Options>& all, Nbd nbd) {
  all.push_back({"connections", "3", [nbd](const Options& o) { return text(nbd(o).connections); }, "3"});
  all.push_back({"requests", "4", [nbd](const Options& o) { return text(nbd(o).requests); }, "4"});
  all.push_back({"timeout", "5", [nbd](const Options& o) { return text(nbd(o).timeout); }, "5"});
  all.push_back(
      {"tls-certificates", "pki", [nbd](const Options& o) { return nbd(o).tls_certificates; }, "pki"});
  all.push_back({"tls-psk-file", "psk", [nbd](const Options& o) { return nbd(o).tls_psk_file; }, "psk"});
}

template <class Options, class Point>
void add_point(Bindings<Options>& all, Point point) {
  all.push_back(
      {"expect", "layer=x", [point](const Options& o) { return text(point(o).expect); }, "layer=x "});
  all.push_back({"not-older-than", "2d",
                 [point](const Options& o) {
                   return std::to_string(point(o).not_older_than.value_or(std::chrono::seconds(0)).count());
                 },
                 "172800"});
  all.push_back({"last-seen", "seen", [point](const Options& o) { return point(o).last_seen; }, "seen"});
}

template <class Options>
void add_owner(Bindings<Options>& all) {
  all.push_back({"libvirt", "vm", [](const Options& o) { return o.owner.libvirt_domain; }, "vm"});
  all.push_back({"connect", "test:///", [](const Options& o) { return o.owner.connect_uri; }, "test:///"});
  all.push_back({"still-running", "true", [](const Options& o) { return o.owner.still_running; }, "true"});
  all.push_back({"owner-timeout", "6", [](const Options& o) { return text(o.owner.timeout); }, "6"});
}

// Gives each option alone, without the check of all options together, and compares the variables of all.
template <class Options>
void expect_bound(const Bindings<Options>& all, const Words& positionals) {
  const auto set_by = [](const Words& words) {
    Options options;
    CommandLine line = command_line_for(options);
    line.afterwards({});
    line.parse(words);
    return options;
  };
  std::multiset<std::string> declared;
  Options none;
  const Options defaults;
  for (const OptionDescription& option : command_line_for(none).options()) declared.insert(option.name);
  std::multiset<std::string> bound{"help"};
  for (const Binding<Options>& given : all) {
    bound.insert(given.option);
    Words words = positionals;
    words.push_back("--" + given.option + (given.value.empty() ? "" : "=" + given.value));
    const Options options = set_by(words);
    for (const Binding<Options>& other : all) {
      EXPECT_EQ(other.variable(options), &other == &given ? given.set : other.variable(defaults))
          << "--" << given.option << ": the variable of --" << other.option;
    }
    EXPECT_NE(given.set, given.variable(defaults)) << "--" << given.option << ": does not show";
  }
  EXPECT_EQ(bound, declared);
}

TEST(Binding, Pull) {
  using O = PullOptions;
  Bindings<O> all{
      {"output", "out", [](const O& o) { return o.request.output; }, "out"},
      {"parent", "full", [](const O& o) { return o.request.parent; }, "full"},
      {"parent-format", "raw", [](const O& o) { return text(o.request.parent_is_raw); }, "set"},
      {"format", "raw", [](const O& o) { return text(o.format); }, text(ImageFormat::Raw)},
      {"range", "1K:2K", [](const O& o) { return text(o.range); }, "1024:2048"},
      {"cluster-size", "4K", [](const O& o) { return text(o.request.cluster_size); }, "4096"},
      {"extended-l2", "", [](const O& o) { return text(o.request.extended_l2); }, "set"},
      {"compress", "zstd:3", [](const O& o) { return o.request.compression; }, "zstd:3"},
      {"layer-id", "uuid", [](const O& o) { return o.request.layer_id; }, "uuid"},
      {"force", "", [](const O& o) { return text(o.request.replace); }, "set"},
      {"checkpoint", "mon", [](const O& o) { return o.request.checkpoint; }, "mon"},
      {"digest", "sha512", [](const O& o) { return o.request.digest; }, "sha512"},
      {"sign-key", "key", [](const O& o) { return o.request.sign_key; }, "key"},
      {"trust-key", "pub", [](const O& o) { return text(o.request.trust_keys); }, "pub "},
      {"sign-unproven", "", [](const O& o) { return text(o.request.sign_unproven); }, "set"},
      {"bitmap", "b0", [](const O& o) { return o.request.bitmap; }, "b0"},
      {"shallow", "", [](const O& o) { return text(o.request.shallow); }, "set"},
      {"since", "sun", [](const O& o) { return o.request.since; }, "sun"},
      {"check-clean", "1", [](const O& o) { return text(o.request.check_clean); },
       text(CheckClean{CheckClean::Mode::All, 1})},
      {"on-missed", "fail", [](const O& o) { return text(o.request.on_missed); }, text(OnMissed::Fail)},
      {"allow-other-export", "", [](const O& o) { return text(o.request.allow_other_export); }, "set"},
      {"require-read-only", "", [](const O& o) { return text(o.request.require_read_only); }, "set"},
      {"no-extents", "", [](const O& o) { return text(o.request.no_extents); }, "set"},
  };
  add_nbd(all, [](const O& o) { return o.request.nbd; });
  add_owner(all);
  add_common(all);
  expect_bound(all, {"a"});
}

TEST(Binding, Verify) {
  using O = VerifyOptions;
  const Folder folder;
  const std::string report = folder / "report.json";
  std::ofstream(report)
      << R"({"schema": "qchain.verify", "version": 1, "unread": [{"offset": 0, "length": 512}]})";
  Bindings<O> all{
      {"against", "nbd://x", [](const O& o) { return o.against; }, "nbd://x"},
      {"manifest-only", "", [](const O& o) { return text(o.manifest_only); }, "set"},
      {"no-extents", "", [](const O& o) { return text(o.no_extents); }, "set"},
      {"sample", "2/7", [](const O& o) { return text(o.selection.part) + '/' + text(o.selection.parts); },
       "2/7"},
      {"only", report, [](const O& o) { return std::to_string(o.selection.only.size()); }, "1"},
      {"max-duration", "8", [](const O& o) { return text(o.max_duration); }, "8"},
      {"combine", "r.json", [](const O& o) { return text(o.combine); }, "r.json "},
      {"trust-key", "pub", [](const O& o) { return text(o.trust_keys); }, "pub "},
      {"record", "", [](const O& o) { return text(o.record); }, "set"},
      {"seal", "", [](const O& o) { return text(o.seal); }, "set"},
      {"accept-changed", "", [](const O& o) { return text(o.accept_changed); }, "set"},
      {"sign-key", "key", [](const O& o) { return o.sign_key; }, "key"},
  };
  add_nbd(all, [](const O& o) { return o.nbd; });
  add_point(all, [](const O& o) { return o.point; });
  add_owner(all);
  add_common(all);
  expect_bound(all, {"a"});
}

TEST(Binding, Restore) {
  using O = RestoreOptions;
  Bindings<O> all{
      {"format", "qcow2", [](const O& o) { return text(o.request.as_layer); }, "set"},
      {"no-verify", "", [](const O& o) { return text(o.request.no_verify); }, "set"},
      {"salvage", "", [](const O& o) { return text(o.request.salvage); }, "set"},
      {"trust-key", "pub", [](const O& o) { return text(o.request.trust_keys); }, "pub "},
      {"read-back", "", [](const O& o) { return text(o.request.read_back); }, "set"},
      {"zero-rest", "", [](const O& o) { return text(o.request.zero_rest); }, "set"},
      {"preallocate", "", [](const O& o) { return text(o.request.preallocate); }, "set"},
      {"force", "", [](const O& o) { return text(o.request.replace); }, "set"},
  };
  add_nbd(all, [](const O& o) { return o.request.nbd; });
  add_point(all, [](const O& o) { return o.request.point; });
  add_common(all);
  expect_bound(all, {"a", "b"});
}

TEST(Binding, Digest) {
  using O = DigestCommandOptions;
  Bindings<O> all{
      {"format", "raw", [](const O& o) { return text(o.request.is_raw); }, "set"},
      {"digest", "xxh3-128", [](const O& o) { return o.request.algorithm; }, "xxh3-128"},
  };
  add_nbd(all, [](const O& o) { return o.request.nbd; });
  add_owner(all);
  add_common(all);
  expect_bound(all, {"a"});
}

TEST(Binding, Chaininfo) {
  using O = ChaininfoOptions;
  Bindings<O> all{{"map", "", [](const O& o) { return text(o.map); }, "set"}};
  add_common(all);
  expect_bound(all, {"a"});
}

TEST(Binding, Check) {
  using O = CheckOptions;
  Bindings<O> all{
      {"strict", "", [](const O& o) { return text(o.strict); }, "set"},
      {"decode", "", [](const O& o) { return text(o.decode); }, "set"},
  };
  add_common(all);
  expect_bound(all, {"a"});
}

TEST(Binding, Selftest) {
  Bindings<SelftestOptions> all;
  add_report(all);
  expect_bound(all, {});
}

}  // namespace
}  // namespace qchain::tests
