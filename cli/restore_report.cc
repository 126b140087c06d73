#include <fmt/format.h>

#include <algorithm>

#include "cli/restore_job.h"
#include "cli/text.h"

namespace qchain {

namespace {

constexpr std::size_t kMaxPrinted = 20;

std::string proof_in_words(const RestoreJob& job) {
  if (!job.losses.is_clean()) {
    return fmt::format("{} of it not what was backed up: see above",
                       human_size(job.losses.damaged_bytes + job.losses.unreadable_bytes));
  }
  if (job.o.no_verify) return "not verified, as asked";
  if (job.is_verified()) {
    return "every block verified; digest " + job.proof.root;
  }
  if (job.recorded_fits) {
    return fmt::format(
        "not verified block by block, but the whole of it has the digest that its header records: {}; qchain "
        "verify --seal writes "
        "what is missing",
        job.proof.digests ? "a manifest of the chain is missing" : "the image has no manifest");
  }
  if (!job.proof.digests)
    return "not verified: the chain has no manifest; qchain verify --seal writes the missing ones";
  if (job.unknown_bytes == 0) {
    return "every block held against a digest, but the digest of the whole disk is unknown; qchain verify "
           "--seal "
           "finds it out";
  }
  return fmt::format("{} of it not verified: no manifest tells what it should be",
                     human_size(job.unknown_bytes));
}

// Names what was read back and is not what was written.
void list_read_back(const RestoreJob& job, const RestoreTarget& target) {
  const ReadBack& result = *job.read_back;
  const std::size_t printed = std::min(result.differences.size(), kMaxPrinted);
  for (const ReadBack::Difference& difference : std::span(result.differences).first(printed)) {
    job.console.print(fmt::format("  guest {} ({}): written {}, read back {}\n", to_string(difference.range),
                                  human_size(difference.range.length()), difference.written,
                                  difference.found));
  }
  if (result.differences.size() > printed) {
    job.console.print(
        fmt::format("  and {} more ranges; --json lists them\n", result.differences.size() - printed));
  }
  for (const Unreadable& part : result.unread) {
    job.console.error(fmt::format("{}: guest {}: not read back: {}", job.o.destination, to_string(part.range),
                                  part.message));
  }
  if (result.different_bytes != 0) {
    job.console.error(fmt::format("{}: {} of it are not what was written, the first at guest {}",
                                  job.o.destination, human_size(result.different_bytes),
                                  to_string(result.differences.front().range)));
  }
  job.console.error(target.after_mismatch(job));
}

// Names what a lenient restore could not read, or found changed.
void list_losses(const RestoreJob& job) {
  const auto list = [&](const auto& items, const auto& describe) {
    for (std::size_t i = 0; i < std::min(items.size(), kMaxPrinted); ++i) {
      job.console.print(fmt::format("  guest {} ({}): {}\n", to_string(items[i].range),
                                    human_size(items[i].range.length()), describe(items[i])));
    }
    if (items.size() > kMaxPrinted) {
      job.console.print(fmt::format("  and {} more ranges; --json lists them\n", items.size() - kMaxPrinted));
    }
  };
  list(job.losses.unreadable,
       [](const Unreadable& part) { return "not readable, written as zeros: " + escaped(part.message); });
  list(job.losses.damages, [](const Damage& damage) {
    return fmt::format("not what was backed up, written as it is: stored {}, found {}", damage.stored,
                       damage.found);
  });
}

Json to_json(const ReadBack& result) {
  Json json;
  json["read_bytes"] = result.read_bytes;
  json["different_bytes"] = result.different_bytes;
  json["unread_bytes"] = result.unread_bytes;
  json["differences"] = Json::array();
  for (const ReadBack::Difference& difference : result.differences) {
    json["differences"].push_back({{"offset", difference.range.begin.bytes()},
                                   {"length", difference.range.length()},
                                   {"written_digest", difference.written},
                                   {"found_digest", difference.found}});
  }
  json["unread"] = Json::array();
  for (const Unreadable& part : result.unread) {
    json["unread"].push_back({{"offset", part.range.begin.bytes()},
                              {"length", part.range.length()},
                              {"outcome", to_string(part.outcome)},
                              {"message", escaped(part.message)}});
  }
  return json;
}

Json to_json(const Proof& losses) {
  Json json;
  json["unread_bytes"] = losses.unreadable_bytes;
  json["damaged_bytes"] = losses.damaged_bytes;
  json["unread"] = Json::array();
  for (const Unreadable& part : losses.unreadable) {
    json["unread"].push_back({{"offset", part.range.begin.bytes()},
                              {"length", part.range.length()},
                              {"outcome", to_string(part.outcome)},
                              {"message", escaped(part.message)}});
  }
  json["damages"] = Json::array();
  for (const Damage& damage : losses.damages) {
    json["damages"].push_back({{"offset", damage.range.begin.bytes()},
                               {"length", damage.range.length()},
                               {"stored_digest", damage.stored},
                               {"found_digest", damage.found}});
  }
  return json;
}

}  // namespace

Outcome report_restore(const RestoreJob& job, const RestoreTarget& target) {
  const RestoreOptions& o = job.o;
  const bool proven = job.losses.is_clean() && (job.is_verified() || o.no_verify);
  const Outcome outcome = worse(proven ? Outcome::Done : Outcome::Incomplete, job.read_back_outcome());
  list_losses(job);
  const std::string proof = proof_in_words(job);
  if (job.read_back_outcome() != Outcome::Done) {
    list_read_back(job, target);
  } else {
    job.console.print(fmt::format("{}: restored from {}, {}, {} of data; {}{}\n", escaped(o.destination),
                                  escaped(o.image), human_size(job.chain.size()),
                                  human_size(job.copied.data_bytes), proof,
                                  job.read_back           ? "; read back, and equal"
                                  : !job.layer_id.empty() ? "; layer " + job.layer_id
                                                          : ""));
  }
  if (job.rest_bytes != 0) {
    job.console.warn(
        fmt::format("{}: its last {} bytes, behind the disk, were left as they were; --zero-rest zeroes them",
                    o.destination, job.rest_bytes));
  }
  Json fields;
  fields["image"] = escaped(o.image);
  fields["destination"] = escaped(o.destination);
  fields["bytes"] = job.chain.top().true_length();
  fields["data_bytes"] = job.copied.data_bytes;
  fields["zero_bytes"] = job.copied.zero_bytes;
  fields["rest_bytes"] = job.rest_bytes;
  fields["verified"] = job.is_verified() && !o.no_verify;
  fields["has_recorded_digest"] = job.recorded_fits;
  fields["unknown_bytes"] = job.proof.digests ? Json(job.unknown_bytes) : Json(nullptr);
  fields["root"] = job.proof.root.empty() ? Json(nullptr) : Json(job.proof.root);
  fields["proof"] = proof;
  fields["format"] = job.layer_id.empty() ? "raw" : "qcow2";
  fields["layer_id"] = job.layer_id.empty() ? Json(nullptr) : Json(job.layer_id);
  fields["read_back"] = job.read_back ? to_json(*job.read_back) : Json(nullptr);
  fields["losses"] = job.is_lenient() ? to_json(job.losses) : Json(nullptr);
  job.console.document(outcome, fields);
  return outcome;
}

}  // namespace qchain
