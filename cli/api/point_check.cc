#include "cli/api/point_check.h"

#include <fmt/format.h>

#include <array>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "cli/api/text.h"
#include "extent/file.h"
#include "extent/publication.h"
#include "qcow2/identity.h"
#include "verify/layer_manifest.h"

namespace qchain {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kSchema = "qchain.last-seen";
constexpr std::size_t kMaxLastSeen = std::size_t{1} << 20;

// What can be expected of a point, and where it is recorded.
constexpr std::array<std::pair<const char*, std::string PointInTime::*>, 3> kFields{{
    {"root", &PointInTime::root},
    {"layer", &PointInTime::layer_id},
    {"checkpoint", &PointInTime::checkpoint},
}};

struct Expectation {
  const char* name;
  std::string PointInTime::*field;
  std::string value;
};

Expectation parse_expectation(const std::string& text) {
  const std::size_t equals = text.find('=');
  for (const auto& [name, field] : kFields) {
    if (equals != std::string::npos && equals + 1 < text.size() && text.substr(0, equals) == name) {
      return {name, field, text.substr(equals + 1)};
    }
  }
  throw Error(Outcome::Usage,
              fmt::format("\"{}\": expect root=ALGORITHM:HEX, layer=UUID or checkpoint=NAME", escaped(text)));
}

std::string or_unknown(const std::string& text) { return text.empty() ? "unknown" : escaped(text); }

Verdict refused(const std::string& message) { return {Outcome::BadManifest, message, Remedy::None}; }

void check_age(const PointInTime& point, std::chrono::seconds most, std::vector<Verdict>& verdicts) {
  const std::optional<std::int64_t> time = parse_time(point.time);
  if (!time) {
    verdicts.push_back(refused("the age of this point is unknown: its manifest records no time"));
  } else if (std::time(nullptr) - *time > most.count()) {
    verdicts.push_back(
        refused(fmt::format("this point is older than was asked for: it is of {}", point.time)));
  }
}

// The file of the newest points; an empty object if there is none yet.
Json read_last_seen(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error) && !error) {
    return {{"schema", kSchema}, {"version", 1}, {"disks", Json::object()}};
  }
  std::vector<std::byte> bytes(kMaxLastSeen + 1);
  bytes.resize(File::open_to_read(path).read_at_most(HostOffset(0), bytes));
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  Json json = bytes.size() > kMaxLastSeen ? Json() : Json::parse(text, nullptr, false);
  const bool is_valid = json.is_object() && json.value("schema", Json()) == Json(kSchema) &&
                        json.value("version", Json()) == Json(1) && json.value("disks", Json()).is_object();
  if (!is_valid) {
    throw Error(Outcome::Usage, fmt::format("{}: is not a file of the points last seen; name another one, or "
                                            "one that does not exist, which will be created",
                                            path));
  }
  return json;
}

std::string text_in(const Json& object, const char* field) {
  const auto found = object.is_object() ? object.find(field) : object.end();
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

// Why `point` is older than the newest one of its disk in `json`, the file `path`; nullopt: it is not.
std::optional<Verdict> find_newer(const PointInTime& point, const Json& json, const std::string& path) {
  const auto seen = json["disks"].find(point.disk);
  if (seen == json["disks"].end()) return std::nullopt;
  // A copy of the same disk, such as a restored one, is no step back.
  if (!point.root.empty() && text_in(*seen, "root") == point.root) return std::nullopt;
  const std::string layer = text_in(*seen, "layer");
  const std::optional<std::int64_t> newest = parse_time(text_in(*seen, "time"));
  const std::optional<std::int64_t> now = parse_time(point.time);
  if (!newest) {
    throw Error(Outcome::Usage,
                fmt::format("{}: its entry for disk \"{}\" has no time", path, escaped(point.disk)));
  }
  if (layer == point.layer_id || (now && *now > *newest)) return std::nullopt;
  return refused(
      fmt::format("this point (layer {}, {}) is older than the newest one seen of disk \"{}\": layer {}, {}",
                  or_unknown(point.layer_id), or_unknown(point.time), escaped(point.disk), or_unknown(layer),
                  escaped(text_in(*seen, "time"))));
}

}  // namespace

PointInTime top_point(RestorePoints& points) {
  const ManifestVerdict& verdict = points.verdict(0);
  const std::optional<Identity> identity = points.chain().top().identity();
  PointInTime point;
  point.is_from_manifest = verdict.belongs;
  const ManifestHeader header =
      verdict.belongs ? verdict.summary->header : header_for(identity.value_or(Identity()), Origin::Pull);
  point.root =
      verdict.belongs ? text_of(verdict.summary->disk_digest()) : identity.value_or(Identity()).digest;
  if (verdict.belongs) point.origin = to_string(header.origin);
  point.layer_id = header.layer_id;
  point.checkpoint = header.checkpoint;
  point.time = header.time;
  point.sealed_time = header.sealed_time;
  point.file = header.file;
  point.disk = header.domain.empty() ? header.export_name : header.domain + "/" + header.target;
  return point;
}

void require_valid(const PointDemand& demand) {
  for (const std::string& text : demand.expect) parse_expectation(text);
}

std::vector<Verdict> check_point(const PointInTime& point, const PointDemand& demand) {
  std::vector<Verdict> verdicts;
  if (demand.is_empty()) return verdicts;
  if (!point.is_from_manifest) {
    verdicts.push_back(refused("no valid manifest tells which point in time this is"));
    return verdicts;
  }
  for (const std::string& text : demand.expect) {
    const Expectation expected = parse_expectation(text);
    if (point.*expected.field == expected.value) continue;
    verdicts.push_back(refused(fmt::format("this point has {} {}, but {} was expected", expected.name,
                                           or_unknown(point.*expected.field), escaped(expected.value))));
  }
  if (demand.not_older_than) check_age(point, *demand.not_older_than, verdicts);
  if (demand.last_seen.empty()) return verdicts;
  const std::optional<Verdict> newer = find_newer(point, read_last_seen(demand.last_seen), demand.last_seen);
  if (newer) verdicts.push_back(*newer);
  return verdicts;
}

void record_seen(const PointInTime& point, const PointDemand& demand) {
  if (demand.last_seen.empty()) return;
  // It keeps others from writing until the end: what they recorded meanwhile is neither lost nor undone.
  Publication publication(demand.last_seen, Existing::Replace);
  Json json = read_last_seen(demand.last_seen);
  if (const std::optional<Verdict> newer = find_newer(point, json, demand.last_seen)) {
    throw Error(newer->outcome, fmt::format("{}: not recorded: {}", demand.last_seen, newer->message));
  }
  if (!parse_time(point.time)) {
    throw Error(Outcome::BadManifest, fmt::format("{}: not recorded: the manifest of layer {} has no time",
                                                  demand.last_seen, or_unknown(point.layer_id)));
  }
  json["disks"][point.disk] = {{"time", point.time},
                               {"layer", point.layer_id},
                               {"root", point.root},
                               {"checkpoint", point.checkpoint}};
  const std::string text = json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  publication.file().append(std::as_bytes(std::span(text)));
  publication.publish();
}

}  // namespace qchain
