#include "cli/chaininfo.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>

#include "cli/command_line.h"
#include "cli/hints.h"
#include "cli/proof_log.h"
#include "cli/api/text.h"
#include "qcow2/bitmap.h"
#include "qcow2/chain.h"
#include "qcow2/snapshot.h"
#include "verify/restore_points.h"

namespace qchain {

namespace {

constexpr std::size_t kMaxListed = 1000;  // snapshots or bitmaps of one layer

// One layer, with all that could be learned of it.
struct LayerInfo {
  const Layer* layer = nullptr;
  std::optional<LayerUsage> usage;  // none: its tables cannot be read
  SnapshotList snapshots;
  BitmapList bitmaps;
  std::optional<ManifestSummary> manifest;  // none: there is none, or it is bad
  std::optional<Json> last_proof;           // as its log has it
};

struct ChainInfo {
  Survey survey;
  std::vector<LayerInfo> layers;
  Outcome outcome = Outcome::Done;
  std::uint64_t file_bytes = 0;
  std::uint64_t disk_bytes = 0;
};

// What is listed beside the disk: it can be damaged while the disk is not.
void learn_lists(ChainInfo& info, std::size_t index, const Image& image) {
  LayerInfo& known = info.layers[index];
  const auto problem = [&](const char* what, const std::string& why) {
    info.survey.problems.push_back({ProblemKind::Unopenable, index, Outcome::Incomplete,
                                    fmt::format("{}: {}: {}", image.file().path(), what, why)});
  };
  known.snapshots = read_snapshots(image, kMaxListed);
  if (!known.snapshots.problem.empty()) problem("snapshots", known.snapshots.problem);
  known.bitmaps = read_bitmaps(image, kMaxListed);
  if (!known.bitmaps.problem.empty()) problem("bitmaps", known.bitmaps.problem);
}

void learn_proof(ChainInfo& info, std::size_t index) {
  LayerInfo& known = info.layers[index];
  try {
    const std::string path = manifest_of(*known.layer);
    if (!manifest_exists(path)) return;
    known.manifest = Manifest(path).summary();
    // A proof of something that lay here before is none of this.
    const std::optional<Json> proof = last_proof(known.layer->path());
    if (proof && proof->value("manifest", Json()) == known.manifest->own_digest.hex())
      known.last_proof = proof;
  } catch (const Error& error) {
    info.survey.problems.push_back(
        {ProblemKind::Unopenable, index, error.outcome(), error.what(), error.remedy()});
  }
}

void learn_layer(ChainInfo& info, std::size_t index) {
  const Layer& layer = info.survey.layers[index];
  LayerInfo& known = info.layers.emplace_back();
  known.layer = &layer;
  learn_proof(info, index);
  try {
    if (layer.image() != nullptr) {
      learn_lists(info, index, *layer.image());
      layer.image()->require_readable();
    }
    known.usage = usage_of(layer);
  } catch (const Error& error) {
    info.survey.problems.push_back(
        {ProblemKind::Unopenable, index, error.outcome(), error.what(), error.remedy()});
  }
}

ChainInfo learn(const ChaininfoOptions& o) {
  ChainInfo info;
  info.survey = survey(o.image, ImageFormat::Qcow2, o.common.open);
  for (std::size_t i = 0; i < info.survey.layers.size(); ++i) {
    learn_layer(info, i);
    info.file_bytes += info.survey.layers[i].file().size();
    info.disk_bytes += info.survey.layers[i].file().allocated_bytes();
  }
  for (const Survey::Problem& problem : info.survey.problems) {
    info.outcome = worse(info.outcome, problem.outcome);
  }
  return info;
}

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

std::string qcow2_text(const Image& image) {
  const Header& header = image.header();
  const std::vector<std::string> features = header.features();
  std::string text = fmt::format("    format       qcow2 version {}, clusters of {}{}{}\n", header.version,
                                 human_size(image.geometry().cluster_size()), features.empty() ? "" : ", ",
                                 fmt::join(features, ", "));
  if (!header.backing_name.empty()) {
    text += fmt::format("    backing file {} ({})\n", escaped(header.backing_name),
                        header.backing_format ? escaped(*header.backing_format) : "format not recorded");
  }
  if (!header.data_file_name.empty()) {
    text += fmt::format("    data file    {}{}\n", escaped(header.data_file_name),
                        image.has_data_file() ? "" : " (not opened)");
  }
  return text;
}

std::string hex(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte byte : bytes) text += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
  return text;
}

// A text field of a log that anybody may have written.
std::string logged(const Json& log, const char* field) {
  const auto found = log.find(field);
  return found != log.end() && found->is_string() ? escaped(found->get<std::string>()) : "?";
}

// How far the last proof went, in words.
std::string reach_of(const Json& log) {
  const auto in_log = log.find("selection");
  const Json selection = in_log != log.end() && in_log->is_object() ? *in_log : Json::object();
  const auto number = [&](const char* field) -> std::uint64_t {
    const auto found = selection.find(field);
    return found != selection.end() && found->is_number_unsigned() ? found->get<std::uint64_t>() : 1;
  };
  if (number("parts") != 1) return fmt::format("part {} of {}", number("part"), number("parts"));
  return selection.value("only_earlier_findings", Json(false)) == Json(true) ? "earlier findings only"
                                                                             : "everything";
}

std::string proof_text(const LayerInfo& info) {
  std::string text;
  if (info.manifest) {
    text += fmt::format(
        "    manifest     {}, {}\n",
        info.manifest->root ? info.manifest->named_root() : "digest of the disk unknown",
        info.manifest->signature ? "signed, key " + hex(info.manifest->signature->key) : "not signed");
  }
  if (info.last_proof) {
    text += fmt::format("    last proof   {}: {}, {} ({})\n", logged(*info.last_proof, "time"),
                        logged(*info.last_proof, "outcome"), reach_of(*info.last_proof),
                        logged(*info.last_proof, "mode"));
  }
  return text;
}

std::string lists_text(const LayerInfo& info) {
  std::string text;
  for (const Snapshot& snapshot : info.snapshots.snapshots) {
    text += fmt::format("    snapshot     {} \"{}\", {}, disk of {}{}\n", escaped(snapshot.id),
                        escaped(snapshot.name), iso_time(snapshot.seconds), human_size(snapshot.disk_bytes),
                        snapshot.vm_state_bytes == 0
                            ? ""
                            : fmt::format(", machine state of {}", human_size(snapshot.vm_state_bytes)));
  }
  for (const BitmapInfo& bitmap : info.bitmaps.bitmaps) {
    text +=
        fmt::format("    bitmap       \"{}\", granularity {}, {}{}\n", escaped(bitmap.bitmap.name),
                    human_size(bitmap.bitmap.granularity()), bitmap.bitmap.automatic() ? "recording, " : "",
                    bitmap.unusable.empty() ? human_size(bitmap.dirty_bytes) + " dirty"
                                            : "unusable: " + escaped(bitmap.unusable));
  }
  return text;
}

bool has_backing_file(const Layer& layer) {
  return layer.image() != nullptr && !layer.image()->header().backing_name.empty();
}

std::string layer_text(std::size_t index, const LayerInfo& info) {
  const Layer& layer = *info.layer;
  std::string text = fmt::format("{:3} {}\n", index, escaped(layer.path()));
  text += layer.image() != nullptr ? qcow2_text(*layer.image()) : "    format       raw\n";
  text +=
      fmt::format("    virtual size {} ({} bytes)\n", human_size(layer.virtual_size()), layer.virtual_size());
  if (info.usage) {
    text += fmt::format("    holds        {} of data, {} of zeros, {} {}\n", human_size(info.usage->data),
                        human_size(info.usage->zero), human_size(info.usage->inherit),
                        has_backing_file(layer) ? "inherited" : "unallocated");
  }
  text += fmt::format("    on disk      {} (file of {})\n", human_size(layer.file().allocated_bytes()),
                      human_size(layer.file().size()));
  text += lists_text(info);
  if (const std::optional<Identity> identity = layer.identity()) text += identity_text(*identity);
  return text + proof_text(info);
}

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

void add_qcow2_json(const Image& image, Json& json) {
  const Header& header = image.header();
  json["version"] = header.version;
  json["cluster_size"] = image.geometry().cluster_size();
  json["features"] = header.features();
  json["backing_file"] = header.backing_name.empty() ? Json(nullptr) : Json(escaped(header.backing_name));
  json["backing_format"] = header.backing_format ? Json(escaped(*header.backing_format)) : Json(nullptr);
  if (!header.data_file_name.empty()) json["data_file"] = escaped(header.data_file_name);
}

Json to_json(const Snapshot& snapshot) {
  Json json;
  json["id"] = escaped(snapshot.id);
  json["name"] = escaped(snapshot.name);
  json["time"] = iso_time(snapshot.seconds);
  json["disk_bytes"] = snapshot.disk_bytes;
  json["machine_state_bytes"] = snapshot.vm_state_bytes;
  return json;
}

Json to_json(const BitmapInfo& info) {
  const bool usable = info.unusable.empty();
  Json json;
  json["name"] = escaped(info.bitmap.name);
  json["granularity"] = info.bitmap.granularity();
  json["recording"] = info.bitmap.automatic();
  json["in_use"] = info.bitmap.in_use();
  json["dirty_bytes"] = usable ? Json(info.dirty_bytes) : Json(nullptr);
  json["unusable"] = usable ? Json(nullptr) : Json(escaped(info.unusable));
  return json;
}

template <class Item>
Json list_json(const std::vector<Item>& items) {
  Json list = Json::array();
  for (const Item& item : items) list.push_back(to_json(item));
  return list;
}

Json manifest_json(const ManifestSummary& manifest) {
  Json json;
  json["algorithm"] = to_string(manifest.header.algorithm);
  json["cryptographic"] = is_cryptographic(manifest.header.algorithm);
  json["root"] = manifest.root ? Json(manifest.named_root()) : Json(nullptr);
  json["signature_key"] = manifest.signature ? Json(hex(manifest.signature->key)) : Json(nullptr);
  return json;
}

// Of a log that anybody may have written, what is known of it.
Json last_proof_json(const Json& log) {
  Json json;
  for (const char* const field : {"time", "outcome", "mode"}) json[field] = logged(log, field);
  json["reach"] = reach_of(log);
  return json;
}

Json layer_json(std::size_t index, const LayerInfo& info) {
  const Layer& layer = *info.layer;
  Json json;
  json["index"] = index;
  json["file"] = escaped(layer.path());
  json["format"] = layer.format();
  json["virtual_size"] = layer.virtual_size();
  if (layer.image() != nullptr) {
    add_qcow2_json(*layer.image(), json);
    json["snapshots"] = list_json(info.snapshots.snapshots);
    json["bitmaps"] = list_json(info.bitmaps.bitmaps);
  }
  json["data_bytes"] = info.usage ? Json(info.usage->data) : Json(nullptr);
  json["zero_bytes"] = info.usage ? Json(info.usage->zero) : Json(nullptr);
  json["inherited_bytes"] = info.usage ? Json(info.usage->inherit) : Json(nullptr);
  json["file_bytes"] = layer.file().size();
  json["disk_bytes"] = layer.file().allocated_bytes();
  const std::optional<Identity> identity = layer.identity();
  json["identity"] = identity ? identity_json(*identity) : Json(nullptr);
  json["manifest"] = info.manifest ? manifest_json(*info.manifest) : Json(nullptr);
  json["last_proof"] = info.last_proof ? last_proof_json(*info.last_proof) : Json(nullptr);
  return json;
}

Json chain_json(const ChaininfoOptions& o, const ChainInfo& info) {
  Json json;
  json["image"] = escaped(o.image);
  json["depth"] = info.layers.size();
  json["complete"] = info.survey.is_whole();
  json["virtual_size"] =
      info.layers.empty() ? Json(nullptr) : Json(info.layers.front().layer->virtual_size());
  json["file_bytes"] = info.file_bytes;
  json["disk_bytes"] = info.disk_bytes;
  json["layers"] = Json::array();
  for (std::size_t i = 0; i < info.layers.size(); ++i) {
    json["layers"].push_back(layer_json(i, info.layers[i]));
  }
  json["problems"] = Json::array();
  for (const Survey::Problem& problem : info.survey.problems) {
    Json entry;
    entry["layer"] = problem.layer < info.layers.size() ? Json(problem.layer) : Json(nullptr);
    entry["outcome"] = to_string(problem.outcome);
    entry["message"] = escaped(with_hint(problem.message, problem.remedy));
    json["problems"].push_back(entry);
  }
  return json;
}

// The mapping of a whole chain, piece by piece.
class MapCursor {
 public:
  explicit MapCursor(const Chain& chain) : chain_(chain), end_(chain.size()) {}

  const Mapping* next() {
    if (index_ == window_.size()) {
      if (at_ >= end_) return nullptr;
      window_ = chain_.map({at_, end_});
      at_ = window_.back().range.end;
      index_ = 0;
    }
    return &window_[index_++];
  }

 private:
  const Chain& chain_;
  const GuestOffset end_;
  GuestOffset at_;
  std::vector<Mapping> window_;
  std::size_t index_ = 0;
};

Json mapping_json(const Mapping& mapping) {
  Json json;
  json["start"] = mapping.range.begin.bytes();
  json["length"] = mapping.range.length();
  json["kind"] = to_string(mapping.kind);
  json["layer"] = mapping.layer;
  if (mapping.storage != Storage::None) json["host_offset"] = mapping.host.bytes();
  if (mapping.storage == Storage::Compressed) json["compressed"] = true;
  return json;
}

void print_map(const Chain& chain, Console& console) {
  console.print(fmt::format("{:>18} {:>18} {:8} {:>5} {:>18}\n", "start", "length", "kind", "layer", "host"));
  MapCursor cursor(chain);
  while (const Mapping* const mapping = cursor.next()) {
    const std::string host =
        mapping->storage == Storage::None ? "-" : fmt::format("{:#x}", mapping->host.bytes());
    console.print(fmt::format("{:>#18x} {:>#18x} {:8} {:>5} {:>18}{}\n", mapping->range.begin.bytes(),
                              mapping->range.length(), to_string(mapping->kind), mapping->layer, host,
                              mapping->storage == Storage::Compressed ? " compressed" : ""));
  }
}

void print_text(const ChainInfo& info, Console& console) {
  for (std::size_t i = 0; i < info.layers.size(); ++i) {
    console.print(layer_text(i, info.layers[i]));
  }
  for (const Survey::Problem& problem : info.survey.problems)
    console.error(with_hint(problem.message, problem.remedy));
  console.print(fmt::format("{} layers{}, {} on disk (files of {})\n", info.layers.size(),
                            info.survey.is_whole() ? "" : " (as far as they can be read)",
                            human_size(info.disk_bytes), human_size(info.file_bytes)));
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
  const ChainInfo info = learn(o);
  print_text(info, console);
  const Json fields = chain_json(o, info);
  if (!o.map || !info.survey.is_whole()) {
    console.document(info.outcome, fields);
    return info.outcome;
  }
  const std::unique_ptr<Chain> chain = Chain::open(o.image, ImageFormat::Qcow2, o.common.open);
  if (!console.json()) print_map(*chain, console);
  MapCursor cursor(*chain);
  console.document(info.outcome, fields, "map", [&] {
    const Mapping* const mapping = cursor.next();
    return mapping != nullptr ? mapping_json(*mapping) : Json(nullptr);
  });
  return info.outcome;
}

}  // namespace qchain
