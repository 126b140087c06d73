#include "qcow2/identity.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <array>
#include <cctype>
#include <cerrno>
#include <ctime>
#include <nlohmann/json.hpp>

#include "extent/error.h"

namespace qchain {

namespace {

constexpr std::size_t kMaxBytes = 1024;
constexpr const char* kFull = "full";
constexpr const char* kOverlay = "overlay";

struct Field {
  const char* name;
  std::string Identity::*text;
};

constexpr std::array<Field, 14> kFields{{
    {"id", &Identity::id},
    {"parent", &Identity::parent_id},
    {"checkpoint", &Identity::checkpoint},
    {"since", &Identity::since},
    {"digest", &Identity::digest},
    {"parent_digest", &Identity::parent_digest},
    {"time", &Identity::time},
    {"tool", &Identity::tool},
    {"export", &Identity::export_name},
    {"domain", &Identity::domain},
    {"target", &Identity::target},
    {"source", &Identity::source},
    {"checked", &Identity::checked},
    {"point", &Identity::point},
}};

}  // namespace

std::string encode_identity(const Identity& identity) {
  nlohmann::ordered_json json;
  json["kind"] = identity.overlay ? kOverlay : kFull;
  for (const Field& field : kFields) {
    const std::string& text = identity.*field.text;
    if (!text.empty()) json[field.name] = text;
  }
  json["length"] = identity.length;
  std::string encoded = json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (encoded.size() > kMaxBytes) {
    throw Error(Outcome::Usage,
                fmt::format("the layer's identity needs {} bytes, and at most {} are allowed; use shorter "
                            "checkpoint names",
                            encoded.size(), kMaxBytes));
  }
  return encoded;
}

Identity decode_identity(const std::string& encoded, const std::string& path) {
  const auto corrupt = [&](const std::string& what) {
    return Error(
        Outcome::Mismatch,
        fmt::format("{}: the layer's identity (header extension 5143484E) is corrupt: {}", path, what));
  };
  if (encoded.size() > kMaxBytes) throw corrupt(fmt::format("{} bytes", encoded.size()));
  const nlohmann::json json = nlohmann::json::parse(encoded, nullptr, false);
  if (!json.is_object()) throw corrupt("not a JSON object");
  Identity identity;
  for (const Field& field : kFields) {
    const auto found = json.find(field.name);
    if (found == json.end()) continue;
    if (!found->is_string()) throw corrupt(fmt::format("\"{}\" is not a string", field.name));
    identity.*field.text = found->get<std::string>();
  }
  const auto kind = json.find("kind");
  if (kind == json.end() || (*kind != kFull && *kind != kOverlay)) throw corrupt("no \"kind\"");
  identity.overlay = *kind == kOverlay;
  const auto length = json.find("length");
  if (length == json.end() || !length->is_number_unsigned()) throw corrupt("no \"length\"");
  identity.length = length->get<std::uint64_t>();
  if (!is_uuid(identity.id)) throw corrupt("\"id\" is not a UUID");
  if (!identity.parent_id.empty() && !is_uuid(identity.parent_id)) {
    throw corrupt("\"parent\" is not a UUID");
  }
  return identity;
}

std::optional<std::int64_t> parse_time(const std::string& text) {
  std::tm fields{};
  const char* const end = strptime(text.c_str(), "%Y-%m-%dT%H:%M:%SZ", &fields);
  if (end == nullptr || *end != '\0') return std::nullopt;
  return timegm(&fields);
}

std::optional<std::int64_t> time_of(const Identity& identity) { return parse_time(identity.time); }

std::string random_uuid() {
  std::array<unsigned char, 16> bytes{};
  if (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    throw system_error("cannot get random bytes", errno);
  }
  bytes[6] = static_cast<unsigned char>((bytes[6] & 0x0F) | 0x40);  // version 4
  bytes[8] = static_cast<unsigned char>((bytes[8] & 0x3F) | 0x80);  // variant of RFC 4122
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", bytes[i]);
  }
  return text;
}

bool is_uuid(const std::string& text) {
  constexpr std::size_t kLength = 36;
  if (text.size() != kLength) return false;
  for (std::size_t i = 0; i < kLength; ++i) {
    const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    if (dash ? text[i] != '-' : std::isxdigit(static_cast<unsigned char>(text[i])) == 0) return false;
  }
  return true;
}

std::string link_mismatch(const Identity& child, bool has_backing, const std::optional<Identity>& parent) {
  if (!child.overlay) {
    return has_backing ? "it was written as a full layer, but now has a backing file" : std::string();
  }
  if (!has_backing) return "it was written as an overlay, but now has no backing file";
  if (child.parent_id.empty()) return {};
  if (!parent) {
    return fmt::format("its parent was layer {}, but its backing file has no identity", child.parent_id);
  }
  if (parent->id != child.parent_id) {
    return fmt::format("its parent was layer {}, but its backing file is layer {}", child.parent_id,
                       parent->id);
  }
  if (!child.since.empty() && !parent->checkpoint.empty() && child.since != parent->checkpoint) {
    return fmt::format("its changes count from checkpoint {}, but its backing file is at checkpoint {}",
                       child.since, parent->checkpoint);
  }
  return {};
}

}  // namespace qchain
