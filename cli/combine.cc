#include "cli/combine.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <set>
#include <string>

#include "cli/api/text.h"
#include "extent/file.h"

namespace qchain {

namespace {

constexpr int kMaxDepth = 16;
constexpr std::uint64_t kMaxReport = std::uint64_t{16} << 20;

[[noreturn]] void usage(const std::string& message) { throw Error(Outcome::Usage, message); }

Json read_report(const std::string& path) {
  const File file = File::open_to_read(path);
  if (file.size() > kMaxReport) usage(fmt::format("{}: too large to be a report", path));
  std::string text(file.size(), '\0');
  file.read(HostOffset(0), std::as_writable_bytes(std::span(text)));
  const auto nesting = [](int depth, Json::parse_event_t, Json&) {
    if (depth > kMaxDepth) usage("the report is nested too deeply");
    return true;
  };
  Json report = Json::parse(text, nesting, false);
  if (!report.is_object() || report.value("schema", Json()) != "qchain.verify" ||
      report.value("version", Json()) != 1) {
    usage(fmt::format("{}: not a report of qchain verify --json", path));
  }
  return report;
}

Outcome outcome_named(const std::string& name) {
  for (const Outcome outcome : {Outcome::Done, Outcome::Mismatch, Outcome::Io, Outcome::Incomplete,
                                Outcome::BadManifest, Outcome::Inconclusive}) {
    if (name == to_string(outcome)) return outcome;
  }
  usage(fmt::format("\"{}\": unknown outcome in a report", escaped(name)));
}

// The fields that have to be equal in reports about the same chain.
Json subject_of(const Json& report) {
  Json subject;
  for (const char* const field : {"image", "mode", "against", "root", "live_bytes", "chain_bytes"}) {
    subject[field] = report.at(field);
  }
  subject["parts"] = report.at("selection").at("parts");
  for (const Json& layer : report.at("layers")) {
    subject["layers"].push_back(
        {layer.at("file"), layer.at("layer_id"), layer.at("manifest").at("own_digest")});
  }
  return subject;
}

struct Sum {
  Json subject;
  std::set<unsigned> parts;
  Outcome outcome = Outcome::Done;
  std::array<std::uint64_t, 4> bytes{};
  Json verdicts = Json::array();
  Json differences = Json::array();
};
constexpr std::array<const char*, 4> kBytes{"read_bytes", "asserted_bytes", "different_bytes",
                                            "unread_bytes"};

void add(Sum& sum, const std::string& path) {
  const Json report = read_report(path);
  const Json subject = subject_of(report);
  if (sum.subject.is_null()) sum.subject = subject;
  if (sum.subject != subject) {
    usage(
        fmt::format("{}: is not about the same chain in the same state, verified in the same way, as the "
                    "previous reports",
                    path));
  }
  const Json& selection = report.at("selection");
  if (selection.at("only_earlier_findings").get<bool>()) {
    usage(fmt::format("{}: covers only the findings of an earlier report, and cannot be combined", path));
  }
  const auto part = selection.at("part").get<unsigned>();
  const auto parts = selection.at("parts").get<unsigned>();
  if (part < 1 || part > parts || parts > Selection::kMaxParts)
    usage(fmt::format("{}: invalid part {} of {}", path, part, parts));
  if (!sum.parts.insert(part).second) {
    usage(fmt::format("{}: part {} was given twice", path, selection.at("part").get<unsigned>()));
  }
  sum.outcome = worse(sum.outcome, outcome_named(report.at("selected_outcome").get<std::string>()));
  for (std::size_t i = 0; i < kBytes.size(); ++i) sum.bytes[i] += report.at(kBytes[i]).get<std::uint64_t>();
  for (const Json& verdict : report.at("verdicts")) {
    sum.outcome = worse(sum.outcome, outcome_named(verdict.at("outcome").get<std::string>()));
    sum.verdicts.push_back(verdict);
  }
  if (report.at("different_bytes") != 0) sum.outcome = worse(sum.outcome, Outcome::Mismatch);
  if (report.at("unread_bytes") != 0) sum.outcome = worse(sum.outcome, Outcome::Io);
  // Without a manifest, it cannot be checked that all reports are about the same content.
  for (const Json& layer : report.at("layers")) {
    if (layer.at("manifest").at("own_digest").is_null())
      sum.outcome = worse(sum.outcome, Outcome::Incomplete);
  }
  for (const Json& difference : report.at("differences")) sum.differences.push_back(difference);
}

}  // namespace

Outcome combine(const VerifyOptions& o, Console& console) {
  Sum sum;
  for (const std::string& path : o.combine) {
    try {
      add(sum, path);
    } catch (const Json::exception& error) {
      usage(fmt::format("{}: incomplete report: {}", path, error.what()));
    }
  }
  const auto parts = sum.subject.at("parts").get<unsigned>();
  std::vector<unsigned> missing;
  for (unsigned part = 1; part <= parts; ++part) {
    if (!sum.parts.contains(part)) missing.push_back(part);
  }
  if (!missing.empty()) sum.outcome = worse(sum.outcome, Outcome::Incomplete);

  const std::string name = escaped(sum.subject.at("image").get<std::string>());
  for (const Json& verdict : sum.verdicts) console.error(verdict.at("message").get<std::string>());
  console.print(fmt::format("{}: {} of {} parts{}: {}; {} read, {} known to be zeros\n", name,
                            sum.parts.size(), parts,
                            missing.empty() ? "" : fmt::format(" (missing: {})", fmt::join(missing, ", ")),
                            to_string(sum.outcome), human_size(sum.bytes[0]), human_size(sum.bytes[1])));
  Json fields;
  fields["combined"] = true;
  fields.update(sum.subject);
  fields["parts_seen"] = sum.parts;
  fields["parts_missing"] = missing;
  for (std::size_t i = 0; i < kBytes.size(); ++i) fields[kBytes[i]] = sum.bytes[i];
  fields["verdicts"] = sum.verdicts;
  fields["differences"] = sum.differences;
  console.document(sum.outcome, fields);
  return sum.outcome;
}

std::vector<GuestRange> findings_of(const std::string& path) {
  const Json report = read_report(path);
  std::vector<GuestRange> ranges;
  try {
    for (const char* const list : {"differences", "unread"}) {
      if (!report.contains(list)) continue;
      for (const Json& item : report.at(list)) {
        const auto begin = item.at("offset").get<std::uint64_t>();
        const auto length = item.at("length").get<std::uint64_t>();
        if (length > ~std::uint64_t{0} / 2 - std::min(begin, ~std::uint64_t{0} / 2)) {
          usage(fmt::format("{}: invalid range of {} bytes at {}", path, length, begin));
        }
        ranges.push_back(guest_range(begin, length));
      }
    }
  } catch (const Json::exception& error) {
    usage(fmt::format("{}: incomplete report: {}", path, error.what()));
  }
  if (ranges.empty()) usage(fmt::format("{}: lists no findings to verify again", path));
  std::ranges::sort(ranges, {}, &GuestRange::begin);
  return ranges;
}

}  // namespace qchain
