#include "cli/check.h"

#include <fmt/format.h>

#include <utility>

#include "cli/command_line.h"
#include "cli/hints.h"
#include "cli/api/text.h"
#include "qcow2/chain.h"
#include "verify/check.h"

namespace qchain {

namespace {

constexpr std::size_t kMaxPrinted = 20;  // findings per layer; --json lists more

std::string summary_of(const LayerCheck& layer) {
  const FindingList& findings = layer.findings;
  const std::uint64_t lost = findings.count(Severity::DataLoss);
  const std::uint64_t harmless = findings.count(Severity::Harmless);
  const std::uint64_t leaks = findings.count(Severity::Leak);
  std::string text;
  const auto item = [&](std::uint64_t count, const char* what) {
    if (count == 0) return;
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", count, what);
  };
  item(lost, lost == 1 ? "data loss" : "data losses");
  item(harmless, harmless == 1 ? "harmless fault" : "harmless faults");
  item(leaks, leaks == 1 ? "leak" : "leaks");
  const std::uint64_t leaked = findings.host_bytes(Flaw::RefcountHigh);
  if (leaked != 0) text += fmt::format(" ({})", human_size(leaked));
  return text.empty() ? "sound" : text;
}

std::string layer_text(std::size_t index, const LayerCheck& layer) {
  std::string text = fmt::format("{:3} {}: {}\n", index, escaped(layer.path),
                                 layer.cluster_bytes == 0 ? "no metadata (raw)" : summary_of(layer));
  std::size_t printed = 0;
  for (const Finding& finding : layer.findings.kept()) {
    if (printed++ == kMaxPrinted) break;
    text += fmt::format("    {}: {} {}\n        {}\n", to_string(finding.severity), to_string(finding.flaw),
                        escaped(describe(finding)), remedy_for(finding.flaw));
  }
  if (layer.findings.kept().size() > kMaxPrinted) {
    text += fmt::format("    and {} more; --json lists them\n", layer.findings.kept().size() - kMaxPrinted);
  }
  for (const std::string& note : layer.notes) text += fmt::format("    note: {}\n", escaped(note));
  for (const std::string& what : layer.unchecked) {
    text += fmt::format("    not checked: {}\n", escaped(what));
  }
  return text;
}

Json to_json(const Finding& finding) {
  Json json;
  json["code"] = to_string(finding.flaw);
  json["severity"] = to_string(finding.severity);
  json["offset"] = finding.at.bytes();
  json["value"] = finding.value ? Json(fmt::format("{:#x}", *finding.value)) : Json(nullptr);
  json["message"] = escaped(finding.what);
  json["count"] = finding.count;
  json["host_offset"] = finding.host.empty() ? Json(nullptr) : Json(finding.host.begin.bytes());
  json["host_length"] = finding.host.empty() ? Json(nullptr) : Json(finding.host.length());
  json["guest_offset"] = finding.guest ? Json(finding.guest->begin.bytes()) : Json(nullptr);
  json["guest_length"] = finding.guest ? Json(finding.guest->length()) : Json(nullptr);
  json["remedy"] = remedy_for(finding.flaw);
  return json;
}

Json escaped_list(const std::vector<std::string>& texts) {
  Json list = Json::array();
  for (const std::string& text : texts) list.push_back(escaped(text));
  return list;
}

Json to_json(std::size_t index, const LayerCheck& layer, bool strict) {
  Json json;
  json["index"] = index;
  json["file"] = escaped(layer.path);
  json["format"] = layer.format;
  json["outcome"] = to_string(layer.outcome(strict));
  json["file_bytes"] = layer.file_bytes;
  json["cluster_size"] = layer.cluster_bytes == 0 ? Json(nullptr) : Json(layer.cluster_bytes);
  json["used_clusters"] = layer.used_clusters;
  json["decoded_payloads"] = layer.decoded_payloads;
  json["data_losses"] = layer.findings.count(Severity::DataLoss);
  json["harmless"] = layer.findings.count(Severity::Harmless);
  json["leaks"] = layer.findings.count(Severity::Leak);
  json["leaked_bytes"] = layer.findings.host_bytes(Flaw::RefcountHigh);
  json["findings"] = Json::array();
  for (const Finding& finding : layer.findings.kept()) json["findings"].push_back(to_json(finding));
  json["findings_not_listed"] = layer.findings.dropped();
  json["notes"] = escaped_list(layer.notes);
  json["unchecked"] = escaped_list(layer.unchecked);
  return json;
}

Json to_json(const Survey::Problem& problem, std::size_t layers) {
  Json json;
  json["layer"] = problem.layer < layers ? Json(problem.layer) : Json(nullptr);
  json["outcome"] = to_string(problem.outcome);
  json["message"] = escaped(with_hint(problem.message, problem.remedy));
  return json;
}

}  // namespace

CommandLine command_line_for(CheckOptions& o) {
  CommandLine line("check", "IMAGE [--strict] [--decode] [options]",
                   "Checks the metadata of every layer of a chain, and that nothing it refers to is missing. "
                   "Nothing is changed.\n"
                   "Exit codes: 0 sound, or leaked clusters only; 1 corruption, or, with --strict, leaked "
                   "clusters; 3 a layer is missing; 4 something could not be checked.");
  line.positional("IMAGE", o.image);
  line.flag("strict", o.strict, "treat leaked clusters as a failure");
  line.flag("decode", o.decode, "decompress every compressed cluster (reads all of them)");
  add_common_options(line, o.common);
  return line;
}

Outcome check(const CheckOptions& o, Console& console) {
  const CheckReport report = check_chain(survey(o.image, ImageFormat::Qcow2, o.common.open),
                                         o.decode ? Payloads::All : Payloads::Doubtful);
  const Outcome outcome = report.outcome(o.strict);

  Json layers = Json::array();
  for (std::size_t i = 0; i < report.layers.size(); ++i) {
    console.print(layer_text(i, report.layers[i]));
    layers.push_back(to_json(i, report.layers[i], o.strict));
  }
  Json problems = Json::array();
  for (const Survey::Problem& problem : report.problems) {
    console.error(with_hint(problem.message, problem.remedy));
    problems.push_back(to_json(problem, report.layers.size()));
  }
  console.print(
      fmt::format("{}: {} layers checked: {}\n", escaped(o.image), report.layers.size(), to_string(outcome)));
  Json fields;
  fields["image"] = escaped(o.image);
  fields["strict"] = o.strict;
  fields["layers"] = std::move(layers);
  fields["problems"] = std::move(problems);
  console.document(outcome, fields);
  return outcome;
}

}  // namespace qchain
