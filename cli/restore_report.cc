#include "cli/restore_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "cli/api/text.h"
#include "cli/point_report.h"
#include "extent/range.h"

namespace qchain {

namespace {

constexpr std::size_t kMaxPrinted = 20;

std::string range_text(const GuestRange& range) {
  return fmt::format("guest {} ({})", to_string(range), human_size(range.length()));
}

std::string proof_in_words(const RestoreRequest& request, const RestoreResult& result) {
  if (!result.losses.is_clean()) {
    return fmt::format("{} could not be read or differ from what was backed up: see above",
                       human_size(result.losses.different_bytes + result.losses.unread_bytes));
  }
  if (request.no_verify) return "not verified (--no-verify)";
  if (result.is_verified) return "every block verified; digest " + result.root;
  if (result.has_recorded_digest) {
    return fmt::format(
        "not verified block by block, but the digest of the whole disk matches the one in the header: {}; "
        "run 'qchain verify --seal' to write what is missing",
        result.has_manifest ? "a manifest of the chain is missing" : "the image has no manifest");
  }
  if (!result.has_manifest)
    return "not verified: the chain has no manifest; run 'qchain verify --seal' to write the missing ones";
  if (result.unknown_bytes == 0) {
    return "every block verified, but the digest of the whole disk is unknown; run 'qchain verify --seal' to "
           "compute it";
  }
  return fmt::format("{} not verified: no manifest covers them", human_size(result.unknown_bytes));
}

template <class Item, class Describe>
void list(const std::vector<Item>& items, Console& console, const Describe& describe) {
  for (const Item& item : std::span(items).first(std::min(items.size(), kMaxPrinted))) {
    console.print(fmt::format("  {}: {}\n", range_text(item.range), describe(item)));
  }
  if (items.size() > kMaxPrinted) {
    console.print(fmt::format("  and {} more ranges; --json lists them\n", items.size() - kMaxPrinted));
  }
}

// Lists what differs from what was written.
void list_read_back(const RestoreRequest& request, const RestoreResult& result, Console& console) {
  const Findings& found = *result.read_back;
  list(found.different, console, [](const Discrepancy& difference) {
    return fmt::format("written {}, read back {}", difference.expected, difference.found);
  });
  for (const UnreadRange& part : found.unread) {
    console.error(
        fmt::format("{}: {}: not read back: {}", request.destination, range_text(part.range), part.message));
  }
  if (found.different_bytes != 0) {
    console.error(fmt::format("{}: {} differ from what was written, first at {}", request.destination,
                              human_size(found.different_bytes), range_text(found.different.front().range)));
  }
  console.error(result.is_in_place ? fmt::format("the content of {} is not complete", request.destination)
                                   : fmt::format("{}: not created", request.destination));
}

// Lists what could not be read or has changed (--salvage, --no-verify).
void list_losses(const Findings& losses, Console& console) {
  list(losses.unread, console,
       [](const UnreadRange& part) { return "unreadable, written as zeros: " + escaped(part.message); });
  list(losses.different, console, [](const Discrepancy& damage) {
    return fmt::format("differs from what was backed up, written anyway: stored {}, found {}",
                       damage.expected, damage.found);
  });
}

Json unread_json(const std::vector<UnreadRange>& unread) {
  Json list = Json::array();
  for (const UnreadRange& part : unread) {
    list.push_back({{"offset", part.range.begin.bytes()},
                    {"length", part.range.length()},
                    {"outcome", to_string(part.outcome)},
                    {"message", escaped(part.message)}});
  }
  return list;
}

Json different_json(const std::vector<Discrepancy>& different, const char* expected) {
  Json list = Json::array();
  for (const Discrepancy& one : different) {
    list.push_back({{"offset", one.range.begin.bytes()},
                    {"length", one.range.length()},
                    {expected, one.expected},
                    {"found_digest", one.found}});
  }
  return list;
}

Json read_back_json(const Findings& found) {
  Json json;
  json["read_bytes"] = found.read_bytes;
  json["different_bytes"] = found.different_bytes;
  json["unread_bytes"] = found.unread_bytes;
  json["differences"] = different_json(found.different, "written_digest");
  json["unread"] = unread_json(found.unread);
  return json;
}

Json losses_json(const Findings& losses) {
  Json json;
  json["unread_bytes"] = losses.unread_bytes;
  json["damaged_bytes"] = losses.different_bytes;
  json["unread"] = unread_json(losses.unread);
  json["damages"] = different_json(losses.different, "stored_digest");
  return json;
}

Json json_of(const RestoreRequest& request, const RestoreResult& result) {
  const auto or_null = [](const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); };
  Json fields;
  fields["image"] = escaped(request.image);
  fields["destination"] = escaped(request.destination);
  fields["bytes"] = result.length;
  fields["data_bytes"] = result.data_bytes;
  fields["zero_bytes"] = result.zero_bytes;
  fields["rest_bytes"] = result.rest_bytes;
  fields["verified"] = result.is_verified;
  fields["has_recorded_digest"] = result.has_recorded_digest;
  fields["unknown_bytes"] = result.has_manifest ? Json(result.unknown_bytes) : Json(nullptr);
  fields["root"] = or_null(result.root);
  fields["point"] = json_of(result.point);
  fields["trust_demanded"] = !request.trust_keys.empty();
  fields["proof"] = proof_in_words(request, result);
  fields["format"] = result.layer_id.empty() ? "raw" : "qcow2";
  fields["layer_id"] = or_null(result.layer_id);
  fields["read_back"] = result.read_back ? read_back_json(*result.read_back) : Json(nullptr);
  fields["losses"] = request.no_verify || request.salvage ? losses_json(result.losses) : Json(nullptr);
  return fields;
}

std::string what_else(const RestoreResult& result) {
  if (result.read_back) return "; read back, equal";
  return result.layer_id.empty() ? "" : "; layer " + result.layer_id;
}

}  // namespace

void report_restore(const RestoreRequest& request, const RestoreResult& result, Console& console) {
  list_losses(result.losses, console);
  if (result.read_back && !result.read_back->is_clean()) {
    list_read_back(request, result, console);
  } else {
    console.print(fmt::format("{}: restored from {}, {}, {} of data; {}{}\n", escaped(request.destination),
                              escaped(request.image), human_size(result.virtual_size),
                              human_size(result.data_bytes), proof_in_words(request, result),
                              what_else(result)));
    console.print(fmt::format("{}: {}\n", escaped(request.image), point_text(result.point)));
  }
  if (result.rest_bytes != 0) {
    console.warn(fmt::format(
        "{}: the last {} bytes, after the end of the disk, were not changed; use --zero-rest to zero them",
        request.destination, result.rest_bytes));
  }
  console.document(result.outcome, json_of(request, result));
}

}  // namespace qchain
