#include "cli/point_report.h"

#include <fmt/format.h>

#include <optional>

#include "cli/api/text.h"
#include "qcow2/identity.h"

namespace qchain {

namespace {

Json or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(escaped(text)); }

}  // namespace

std::string point_text(const PointInTime& point) {
  std::string text = "point in time " + (point.time.empty() ? "unknown" : escaped(point.time));
  if (!point.checkpoint.empty()) text += ", checkpoint " + escaped(point.checkpoint);
  if (!point.layer_id.empty()) text += ", layer " + escaped(point.layer_id);
  if (!point.disk.empty()) text += ", disk " + escaped(point.disk);
  if (!point.is_from_manifest) text += " (by the image's header: there is no valid manifest)";
  return text;
}

Json json_of(const PointInTime& point) {
  Json json;
  json["from_manifest"] = point.is_from_manifest;
  json["time"] = or_null(point.time);
  json["checkpoint"] = or_null(point.checkpoint);
  json["layer_id"] = or_null(point.layer_id);
  json["root"] = or_null(point.root);
  json["origin"] = or_null(point.origin);
  json["sealed_time"] = or_null(point.sealed_time);
  json["file"] = or_null(point.file);
  json["disk"] = or_null(point.disk);
  return json;
}

std::string sealed_text(const std::string& written, const std::string& sealed) {
  constexpr std::int64_t kDay = 24 * 3600;
  std::string text = "sealed " + (sealed.empty() ? "at an unknown time" : escaped(sealed));
  const std::optional<std::int64_t> from = parse_time(written);
  const std::optional<std::int64_t> to = parse_time(sealed);
  if (!from || !to || *to < *from) return text;
  const std::int64_t days = (*to - *from) / kDay;
  if (days == 0) return text + ", less than a day after the layer was written";
  return text + fmt::format(", {} {} after the layer was written", days, days == 1 ? "day" : "days");
}

}  // namespace qchain
