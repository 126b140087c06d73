#include "cli/verify_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>

#include "cli/api/proof_log.h"
#include "cli/api/text.h"
#include "cli/hints.h"
#include "cli/point_report.h"
#include "extent/nbd_session.h"
#include "verify/digest.h"

namespace qchain {

namespace {

constexpr std::size_t kMaxPrinted = 20;

bool verifies_from_manifests(const VerifyOptions& o) { return o.against.empty(); }

std::string mode_of(const VerifyOptions& o) {
  if (verifies_from_manifests(o)) return "drill";
  return o.manifest_only ? "manifest-only" : "against";
}

// ---- text ----

std::string source_text(const VerifyResult& result, const BlockSource& source) {
  const std::string layer =
      fmt::format("layer {} ({})", source.layer, escaped(result.layers[source.layer].file));
  if (source.host_offset) {
    return fmt::format("{}, {}host offset {:#x}", layer, source.is_compressed ? "compressed at " : "",
                       *source.host_offset);
  }
  return layer + (source.kind == Kind::Inherit ? ", unallocated: zeros" : ", stored as zeros");
}

std::string digests_text(const Discrepancy& found) {
  if (found.live.empty()) return fmt::format("stored {}, found {}", found.expected, found.found);
  return fmt::format("chain {}, live {}{}", found.found, found.live,
                     found.expected.empty() ? "" : ", stored " + found.expected);
}

void print_differences(const VerifyResult& result, const Findings& findings, Console& console) {
  const std::vector<Discrepancy>& all = findings.different;
  for (std::size_t i = 0; i < std::min(all.size(), kMaxPrinted); ++i) {
    console.print(fmt::format("  guest {} ({}): {}; {}; {}\n", to_string(all[i].range),
                              human_size(all[i].range.length()), to_string(all[i].cause),
                              source_text(result, all[i].source), digests_text(all[i])));
  }
  if (all.size() > kMaxPrinted) {
    console.print(fmt::format("  and {} more ranges; --json lists them\n", all.size() - kMaxPrinted));
  }
}

std::string manifest_text(const ManifestStatus& manifest) {
  if (!manifest.exists) return "no manifest";
  if (!manifest.is_readable) return "its manifest cannot be read";
  const bool followed = manifest.outcome != Outcome::Incomplete;
  if (manifest.outcome != Outcome::Done && followed) return "its manifest does not match";
  std::string text = manifest.root.empty() ? "root unknown" : "root " + manifest.root;
  if (!manifest.is_cryptographic) text += " (not cryptographic)";
  if (!followed) text += " (not checked against the layers below)";
  if (!manifest.accepted.empty()) text += ", " + accepted_text(manifest.accepted);
  if (manifest.origin == "seal") text += ", " + sealed_text(manifest.time, manifest.sealed_time);
  if (!manifest.trusted_key.empty()) text += ", signed by " + escaped(manifest.trusted_key);
  if (manifest.is_signed_unproven) text += ", signed although layers below were not";
  return text;
}

std::string content_text(const LayerStatus& layer) {
  if (!layer.content) return "content not checked";
  const Findings& findings = layer.content->findings;
  return fmt::format("{} blocks compared with their digests ({} read), {} damaged{}", layer.content->blocks,
                     human_size(findings.read_bytes),
                     findings.different_bytes == 0 ? "none" : human_size(findings.different_bytes),
                     findings.unread_bytes == 0
                         ? ""
                         : fmt::format(", {} could not be read", human_size(findings.unread_bytes)));
}

void print_layers(const VerifyOptions& o, const VerifyResult& result, Console& console) {
  if (result.layers.empty() || !result.layers.front().manifest) return;
  console.print(fmt::format("{}: {} layers\n", escaped(o.image), result.layers.size()));
  for (std::size_t i = 0; i < result.layers.size(); ++i) {
    const LayerStatus& layer = result.layers[i];
    const char* const metadata =
        layer.metadata.outcome == Outcome::Done ? "metadata sound" : "metadata damaged";
    console.print(fmt::format("{:3} {}: {}; {}\n", i, escaped(layer.file), manifest_text(*layer.manifest),
                              verifies_from_manifests(o) ? content_text(layer) : metadata));
    if (layer.content) print_differences(result, layer.content->findings, console);
  }
}

std::string conclusion(const VerifyOptions& o, const VerifyResult& result) {
  const std::string name = escaped(o.image);
  if (result.selected != Outcome::Done) return fmt::format("{}: {}\n", name, to_string(result.outcome));
  std::string what =
      verifies_from_manifests(o)
          ? fmt::format("all stored digests and roots of {} layers match", result.layers.size())
          : fmt::format("equal to {}", escaped(o.against));
  what += fmt::format("; {} read, {} known to be zeros", human_size(result.findings.read_bytes),
                      human_size(result.asserted_bytes));
  if (!result.root.empty()) what += "; digest " + result.root;
  if (o.selection.parts > 1) {
    return fmt::format("{}: part {} of {} only: {}\n", name, o.selection.part, o.selection.parts, what);
  }
  if (!o.selection.only.empty()) {
    return fmt::format("{}: findings of an earlier report only: {}\n", name, what);
  }
  return fmt::format("{}: {}\n", name, what);
}

// ---- JSON ----

Json or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(escaped(text)); }

template <class Number>
Json or_null(const std::optional<Number>& number) {
  return number ? Json(*number) : Json(nullptr);
}

Json to_json(const VerifyResult& result, const Discrepancy& found) {
  const BlockSource& source = found.source;
  Json json;
  json["offset"] = found.range.begin.bytes();
  json["length"] = found.range.length();
  json["cause"] = to_string(found.cause);
  json["layer"] = source.layer;
  json["file"] = escaped(result.layers[source.layer].file);
  json["host_offset"] = or_null(source.host_offset);
  json["compressed"] = source.is_compressed;
  json["kind"] = to_string(source.kind);
  if (found.live.empty()) {
    json["manifest_of_layer"] = found.layer;
    json["stored_digest"] = found.expected;
    json["found_digest"] = found.found;
  } else {
    json["stored_digest"] = or_null(found.expected);
    json["chain_digest"] = found.found;
    json["live_digest"] = found.live;
    json["live_moved"] = found.cause == Cause::Moving;
  }
  return json;
}

Json to_json(const UnreadRange& unread) {
  return {{"offset", unread.range.begin.bytes()},
          {"length", unread.range.length()},
          {"outcome", to_string(unread.outcome)},
          {"message", escaped(unread.message)}};
}

Json to_json(const ContentStatus& content) {
  Json json;
  json["blocks"] = content.blocks;
  json["zero_blocks"] = content.zero_blocks;
  json["partial_blocks"] = content.partial_blocks;
  json["read_bytes"] = content.findings.read_bytes;
  json["unknown_bytes"] = content.unknown_bytes;
  json["damaged_bytes"] = content.findings.different_bytes;
  json["unread_bytes"] = content.findings.unread_bytes;
  json["stopped_at"] = or_null(content.stopped_at);
  json["reach"] = content.inherited_blocks ? "everything" : "a part";
  json["inherited_blocks"] = or_null(content.inherited_blocks);
  return json;
}

Json to_json(const ManifestStatus& manifest) {
  const bool known = manifest.is_readable;
  Json json;
  json["state"] = !manifest.exists ? "missing" : manifest.outcome == Outcome::Done ? "good" : "bad";
  json["outcome"] = to_string(manifest.outcome);
  json["algorithm"] = or_null(manifest.algorithm);
  json["cryptographic"] = known ? Json(manifest.is_cryptographic) : Json(nullptr);
  json["root"] = or_null(manifest.root);
  json["root_follows"] = manifest.root.empty() ? Json(nullptr) : Json(manifest.root_follows);
  json["own_digest"] = or_null(manifest.own_digest);
  json["origin"] = or_null(manifest.origin);
  json["time"] = or_null(manifest.time);
  json["sealed_time"] = or_null(manifest.sealed_time);
  json["signed_unproven"] = manifest.is_signed_unproven;
  json["accepted"] = or_null(manifest.accepted);
  json["signed"] = manifest.is_signed;
  json["trusted_key"] = or_null(manifest.trusted_key);
  json["problems"] = Json::array();
  for (const std::string& problem : manifest.problems) json["problems"].push_back(escaped(problem));
  return json;
}

Json to_json(std::size_t index, const LayerStatus& layer) {
  const MetadataSummary& metadata = layer.metadata;
  Json json;
  json["index"] = index;
  json["file"] = escaped(layer.file);
  json["metadata"] = {{"outcome", to_string(metadata.outcome)},
                      {"data_losses", metadata.data_losses},
                      {"harmless", metadata.harmless},
                      {"leaks", metadata.leaks}};
  if (!layer.manifest) return json;
  json["manifest"] = to_json(*layer.manifest);
  json["content"] = layer.content ? to_json(*layer.content) : Json(nullptr);
  json["same_content"] = or_null(layer.same_content);
  json["layer_id"] = or_null(layer.layer_id);
  json["checkpoint"] = or_null(layer.checkpoint);
  return json;
}

void put_live(Json& json, const VerifyOptions& o, const VerifyResult& result) {
  const LiveStatus live = result.live.value_or(LiveStatus());
  const auto if_live = [&](std::uint64_t bytes) { return result.live ? Json(bytes) : Json(nullptr); };
  json["against"] = or_null(o.against);
  json["live_bytes"] = if_live(live.live_bytes);
  json["chain_bytes"] = if_live(live.chain_bytes);
  json["compared_bytes"] = or_null(live.compared_bytes);
  json["live_digest"] = or_null(live.live_digest);
  json["chain_digest"] = or_null(live.chain_digest);
}

Json verdict_json(Outcome outcome, const std::string& message) {
  return {{"outcome", to_string(outcome)}, {"message", escaped(message)}};
}

Json to_json(const VerifyOptions& o, const VerifyResult& result, const std::string& time, double seconds) {
  Json json;
  json["image"] = escaped(o.image);
  json["mode"] = mode_of(o);
  json["selection"] = {{"part", o.selection.part},
                       {"parts", o.selection.parts},
                       {"only_earlier_findings", !o.selection.only.empty()}};
  json["selected_outcome"] = to_string(result.selected);
  for (const char* const list : {"verdicts", "layers", "differences", "unread"}) json[list] = Json::array();
  for (const Verdict& verdict : result.verdicts) {
    json["verdicts"].push_back(verdict_json(verdict.outcome, with_hint(verdict.message, verdict.remedy)));
  }
  json["root"] = or_null(result.root);
  json["point"] = result.point ? json_of(*result.point) : Json(nullptr);
  json["read_bytes"] = result.findings.read_bytes;
  json["asserted_bytes"] = result.asserted_bytes;
  json["different_bytes"] = result.findings.different_bytes;
  json["unread_bytes"] = result.findings.unread_bytes;
  put_live(json, o, result);
  for (std::size_t i = 0; i < result.layers.size(); ++i)
    json["layers"].push_back(to_json(i, result.layers[i]));
  for (const Discrepancy& found : result.findings.different)
    json["differences"].push_back(to_json(result, found));
  json["all_listed"] = result.lists_all;
  for (const UnreadRange& unread : result.findings.unread) json["unread"].push_back(to_json(unread));
  json["versions"] = {{"manifest", 1}, {"openssl", crypto_version()}, {"libnbd", nbd_version()}};
  json["time"] = time;
  json["seconds"] = seconds;
  return json;
}

// ---- the log ----

LoggedProof to_log(const VerifyOptions& o, const VerifyResult& result, const std::string& time) {
  LoggedProof proof;
  proof.time = time;
  proof.outcome = to_string(result.outcome);
  proof.tool = "qchain " QCHAIN_VERSION;
  proof.mode = mode_of(o);
  proof.part = o.selection.part;
  proof.parts = o.selection.parts;
  proof.is_of_earlier_findings = !o.selection.only.empty();
  proof.root = result.root;
  proof.read_bytes = result.findings.read_bytes;
  proof.different_bytes = result.findings.different_bytes;
  proof.unread_bytes = result.findings.unread_bytes;
  proof.layers = result.layers.size();
  if (!result.layers.empty() && result.layers.front().manifest) {
    proof.manifest = result.layers.front().manifest->own_digest;
  }
  proof.against = o.against;
  return proof;
}

}  // namespace

Outcome report_verify(const VerifyOptions& o, const VerifyResult& result, double seconds, Console& console) {
  print_layers(o, result, console);
  if (!verifies_from_manifests(o)) print_differences(result, result.findings, console);
  for (const Verdict& note : result.notes) console.note(with_hint(note.message, note.remedy));
  for (const Verdict& verdict : result.verdicts) console.error(with_hint(verdict.message, verdict.remedy));
  console.print(conclusion(o, result));
  if (result.point) console.print(fmt::format("{}: {}\n", escaped(o.image), point_text(*result.point)));
  Outcome outcome = result.outcome;
  const std::string time = iso_time(std::time(nullptr));
  Json document = to_json(o, result, time, seconds);
  if (o.record) {
    try {
      append_proof(o.image, to_log(o, result, time));
    } catch (const Error& error) {
      console.error(error.what());
      outcome = worse(outcome, error.outcome());
      document["verdicts"].push_back(verdict_json(error.outcome(), error.what()));
      document["selected_outcome"] = to_string(worse(result.selected, error.outcome()));
    }
  }
  console.document(outcome, document);
  return outcome;
}

}  // namespace qchain
