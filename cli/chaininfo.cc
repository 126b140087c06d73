#include "cli/chaininfo.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/api/qchain.h"
#include "cli/api/text.h"
#include "cli/command_line.h"
#include "cli/console_run.h"
#include "cli/hints.h"
#include "cli/point_report.h"

namespace qchain {

namespace {

// What the last proof went over, in words.
std::string reach_of(const LoggedProof& proof) {
  if (proof.parts != 1) return fmt::format("part {} of {}", proof.part, proof.parts);
  return proof.is_of_earlier_findings ? "earlier findings only" : "everything";
}

// A field of the log.
std::string logged(const std::string& text) { return text.empty() ? "?" : escaped(text); }

std::uint64_t sum_of(const std::vector<InspectedLayer>& layers, std::uint64_t InspectedLayer::*bytes) {
  std::uint64_t sum = 0;
  for (const InspectedLayer& layer : layers) sum += layer.*bytes;
  return sum;
}

// ---- text ----

std::string identity_text(const Identity& identity) {
  std::string text =
      fmt::format("    layer        {} ({})\n", identity.id, identity.overlay ? "increment" : "full");
  if (!identity.parent_id.empty()) text += fmt::format("    written on   {}\n", identity.parent_id);
  if (!identity.checkpoint.empty()) {
    text += fmt::format("    checkpoint   {}{}\n", escaped(identity.checkpoint),
                        identity.since.empty() ? "" : ", since " + escaped(identity.since));
  }
  text +=
      fmt::format("    digest       {}\n", identity.digest.empty() ? "unknown" : escaped(identity.digest));
  text += fmt::format("    written      {} by {}\n", escaped(identity.time), escaped(identity.tool));
  return text;
}

std::string qcow2_text(const InspectedImage& image) {
  std::string text = fmt::format("    format       qcow2 version {}, clusters of {}{}{}\n", image.version,
                                 human_size(image.cluster_size), image.features.empty() ? "" : ", ",
                                 fmt::join(image.features, ", "));
  if (!image.backing_file.empty()) {
    text += fmt::format("    backing file {} ({})\n", escaped(image.backing_file),
                        image.backing_format ? escaped(*image.backing_format) : "format not recorded");
  }
  if (!image.data_file.empty()) {
    text += fmt::format("    data file    {}{}\n", escaped(image.data_file),
                        image.is_data_file_open ? "" : " (not opened)");
  }
  return text;
}

std::string signature_text(const InspectedManifest& manifest) {
  if (manifest.signing_key.empty()) return "not signed";
  return fmt::format("signature {}, key {} (verify --trust-key tells whether it is yours)",
                     manifest.has_valid_signature ? "valid" : "INVALID", manifest.signing_key);
}

std::string proof_text(const InspectedLayer& layer) {
  std::string text;
  if (layer.manifest) {
    const InspectedManifest& manifest = *layer.manifest;
    text += fmt::format(
        "    manifest     {}, {}{}\n", manifest.root.empty() ? "digest of the disk unknown" : manifest.root,
        manifest.origin == "seal" ? sealed_text(manifest.time, manifest.sealed_time) + ", " : "",
        signature_text(manifest));
  }
  if (layer.last_proof) {
    const LoggedProof& proof = *layer.last_proof;
    text += fmt::format("    last proof   {}: {}, {} ({})\n", logged(proof.time), logged(proof.outcome),
                        reach_of(proof), logged(proof.mode));
  }
  return text;
}

std::string lists_text(const InspectedImage& image) {
  std::string text;
  for (const InspectedSnapshot& snapshot : image.snapshots) {
    text += fmt::format("    snapshot     {} \"{}\", {}, disk of {}{}\n", escaped(snapshot.id),
                        escaped(snapshot.name), iso_time(snapshot.seconds), human_size(snapshot.disk_bytes),
                        snapshot.machine_state_bytes == 0
                            ? ""
                            : fmt::format(", machine state of {}", human_size(snapshot.machine_state_bytes)));
  }
  for (const InspectedBitmap& bitmap : image.bitmaps) {
    text += fmt::format("    bitmap       \"{}\", granularity {}, {}{}\n", escaped(bitmap.name),
                        human_size(bitmap.granularity), bitmap.is_recording ? "recording, " : "",
                        bitmap.unusable.empty() ? human_size(bitmap.dirty_bytes) + " dirty"
                                                : "unusable: " + escaped(bitmap.unusable));
  }
  return text;
}

std::string layer_text(std::size_t index, const InspectedLayer& layer) {
  std::string text = fmt::format("{:3} {}\n", index, escaped(layer.file));
  text += layer.image ? qcow2_text(*layer.image) : "    format       raw\n";
  text += fmt::format("    virtual size {} ({} bytes)\n", human_size(layer.virtual_size), layer.virtual_size);
  if (layer.usage) {
    const bool has_backing_file = layer.image && !layer.image->backing_file.empty();
    text += fmt::format("    holds        {} of data, {} of zeros, {} {}\n", human_size(layer.usage->data),
                        human_size(layer.usage->zero), human_size(layer.usage->inherit),
                        has_backing_file ? "inherited" : "unallocated");
  }
  text += fmt::format("    on disk      {} (file of {})\n", human_size(layer.disk_bytes),
                      human_size(layer.file_bytes));
  if (layer.image) text += lists_text(*layer.image);
  if (layer.identity) text += identity_text(*layer.identity);
  return text + proof_text(layer);
}

// ---- JSON ----

Json identity_json(const Identity& identity) {
  const auto known = [](const std::string& text) {
    return text.empty() ? Json(nullptr) : Json(escaped(text));
  };
  Json json;
  json["id"] = identity.id;
  json["kind"] = identity.overlay ? "increment" : "full";
  json["parent"] = known(identity.parent_id);
  json["checkpoint"] = known(identity.checkpoint);
  json["since"] = known(identity.since);
  json["digest"] = known(identity.digest);
  json["parent_digest"] = known(identity.parent_digest);
  json["length"] = identity.length;
  json["time"] = known(identity.time);
  json["tool"] = known(identity.tool);
  return json;
}

Json to_json(const InspectedSnapshot& snapshot) {
  Json json;
  json["id"] = escaped(snapshot.id);
  json["name"] = escaped(snapshot.name);
  json["time"] = iso_time(snapshot.seconds);
  json["disk_bytes"] = snapshot.disk_bytes;
  json["machine_state_bytes"] = snapshot.machine_state_bytes;
  return json;
}

Json to_json(const InspectedBitmap& bitmap) {
  const bool usable = bitmap.unusable.empty();
  Json json;
  json["name"] = escaped(bitmap.name);
  json["granularity"] = bitmap.granularity;
  json["recording"] = bitmap.is_recording;
  json["in_use"] = bitmap.is_in_use;
  json["dirty_bytes"] = usable ? Json(bitmap.dirty_bytes) : Json(nullptr);
  json["unusable"] = usable ? Json(nullptr) : Json(escaped(bitmap.unusable));
  return json;
}

template <class Item>
Json list_json(const std::vector<Item>& items) {
  Json list = Json::array();
  for (const Item& item : items) list.push_back(to_json(item));
  return list;
}

void add_qcow2_json(const InspectedImage& image, Json& json) {
  json["version"] = image.version;
  json["cluster_size"] = image.cluster_size;
  json["features"] = image.features;
  json["backing_file"] = image.backing_file.empty() ? Json(nullptr) : Json(escaped(image.backing_file));
  json["backing_format"] = image.backing_format ? Json(escaped(*image.backing_format)) : Json(nullptr);
  if (!image.data_file.empty()) json["data_file"] = escaped(image.data_file);
  json["snapshots"] = list_json(image.snapshots);
  json["bitmaps"] = list_json(image.bitmaps);
}

Json manifest_json(const InspectedManifest& manifest) {
  Json json;
  json["algorithm"] = manifest.algorithm;
  json["cryptographic"] = manifest.is_cryptographic;
  json["root"] = manifest.root.empty() ? Json(nullptr) : Json(manifest.root);
  json["signature_key"] = manifest.signing_key.empty() ? Json(nullptr) : Json(manifest.signing_key);
  json["signature_valid"] = manifest.signing_key.empty() ? Json(nullptr) : Json(manifest.has_valid_signature);
  json["origin"] = manifest.origin;
  json["time"] = manifest.time.empty() ? Json(nullptr) : Json(escaped(manifest.time));
  json["sealed_time"] = manifest.sealed_time.empty() ? Json(nullptr) : Json(escaped(manifest.sealed_time));
  return json;
}

Json last_proof_json(const LoggedProof& proof) {
  Json json;
  json["time"] = logged(proof.time);
  json["outcome"] = logged(proof.outcome);
  json["mode"] = logged(proof.mode);
  json["reach"] = reach_of(proof);
  return json;
}

Json layer_json(std::size_t index, const InspectedLayer& layer) {
  Json json;
  json["index"] = index;
  json["file"] = escaped(layer.file);
  json["format"] = layer.image ? "qcow2" : "raw";
  json["virtual_size"] = layer.virtual_size;
  if (layer.image) add_qcow2_json(*layer.image, json);
  json["data_bytes"] = layer.usage ? Json(layer.usage->data) : Json(nullptr);
  json["zero_bytes"] = layer.usage ? Json(layer.usage->zero) : Json(nullptr);
  json["inherited_bytes"] = layer.usage ? Json(layer.usage->inherit) : Json(nullptr);
  json["file_bytes"] = layer.file_bytes;
  json["disk_bytes"] = layer.disk_bytes;
  json["identity"] = layer.identity ? identity_json(*layer.identity) : Json(nullptr);
  json["manifest"] = layer.manifest ? manifest_json(*layer.manifest) : Json(nullptr);
  json["last_proof"] = layer.last_proof ? last_proof_json(*layer.last_proof) : Json(nullptr);
  return json;
}

Json chain_json(const ChaininfoOptions& o, const InspectResult& chain) {
  Json json;
  json["image"] = escaped(o.image);
  json["depth"] = chain.layers.size();
  json["complete"] = chain.is_complete;
  json["virtual_size"] = chain.layers.empty() ? Json(nullptr) : Json(chain.layers.front().virtual_size);
  json["file_bytes"] = sum_of(chain.layers, &InspectedLayer::file_bytes);
  json["disk_bytes"] = sum_of(chain.layers, &InspectedLayer::disk_bytes);
  json["layers"] = Json::array();
  for (std::size_t i = 0; i < chain.layers.size(); ++i) {
    json["layers"].push_back(layer_json(i, chain.layers[i]));
  }
  json["problems"] = Json::array();
  for (const ChainProblem& problem : chain.problems) {
    const Verdict& verdict = problem.verdict;
    json["problems"].push_back({{"layer", problem.layer ? Json(*problem.layer) : Json(nullptr)},
                                {"outcome", to_string(verdict.outcome)},
                                {"message", escaped(with_hint(verdict.message, verdict.remedy))}});
  }
  return json;
}

Json to_json(const MapPiece& piece) {
  Json json;
  json["start"] = piece.range.begin.bytes();
  json["length"] = piece.range.length();
  json["kind"] = to_string(piece.source.kind);
  json["layer"] = piece.source.layer;
  if (piece.source.host_offset) json["host_offset"] = *piece.source.host_offset;
  if (piece.source.is_compressed) json["compressed"] = true;
  return json;
}

void print_map(const InspectResult& chain, Console& console) {
  console.print(fmt::format("{:>18} {:>18} {:8} {:>5} {:>18}\n", "start", "length", "kind", "layer", "host"));
  while (const std::optional<MapPiece> piece = chain.map()) {
    const BlockSource& source = piece->source;
    const std::string host = source.host_offset ? fmt::format("{:#x}", *source.host_offset) : "-";
    console.print(fmt::format("{:>#18x} {:>#18x} {:8} {:>5} {:>18}{}\n", piece->range.begin.bytes(),
                              piece->range.length(), to_string(source.kind), source.layer, host,
                              source.is_compressed ? " compressed" : ""));
  }
}

void print_text(const InspectResult& chain, Console& console) {
  for (std::size_t i = 0; i < chain.layers.size(); ++i) {
    console.print(layer_text(i, chain.layers[i]));
  }
  for (const ChainProblem& problem : chain.problems)
    console.error(with_hint(problem.verdict.message, problem.verdict.remedy));
  console.print(fmt::format("{} layers{}, {} on disk (files of {})\n", chain.layers.size(),
                            chain.is_complete ? "" : " (as far as they can be read)",
                            human_size(sum_of(chain.layers, &InspectedLayer::disk_bytes)),
                            human_size(sum_of(chain.layers, &InspectedLayer::file_bytes))));
}

}  // namespace

CommandLine command_line_for(ChaininfoOptions& o) {
  CommandLine line("chaininfo", "IMAGE [options]",
                   "Shows the layers of a chain, from the top down. What can be read is printed.\n"
                   "Exit codes: 0 all could be read; 1 a loop, or a layer that does not match its backing "
                   "file; 3 a layer is missing; 4 something could not be read.");
  line.positional("IMAGE", o.image);
  line.flag("map", o.map, "list which layer holds which part of the disk");
  add_common_options(line, o.common);
  return line;
}

Outcome chaininfo(const ChaininfoOptions& o, Console& console) {
  InspectRequest request;
  request.image = o.image;
  request.open = o.common.open;
  request.map = o.map;
  const InspectResult chain = inspect(request, ConsoleRun(console));
  print_text(chain, console);
  const Json fields = chain_json(o, chain);
  if (!chain.map) {
    console.document(chain.outcome, fields);
    return chain.outcome;
  }
  if (!console.json()) print_map(chain, console);
  console.document(chain.outcome, fields, "map", [&] {
    const std::optional<MapPiece> piece = chain.map();
    return piece ? to_json(*piece) : Json(nullptr);
  });
  return chain.outcome;
}

}  // namespace qchain
