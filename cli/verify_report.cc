#include "cli/verify_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <ctime>
#include <utility>

#include "cli/hints.h"
#include "cli/proof_log.h"
#include "cli/api/text.h"
#include "extent/nbd_session.h"

namespace qchain {

namespace {

constexpr std::size_t kMaxPrinted = 20;

Json or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(escaped(text)); }

std::string source_text(const Chain& chain, const Mapping& source) {
  std::string text = fmt::format("layer {} ({})", source.layer, escaped(chain.layers()[source.layer].path()));
  if (source.storage != Storage::None) {
    return text + fmt::format(", {}host offset {:#x}",
                              source.storage == Storage::Compressed ? "compressed at " : "",
                              source.host.bytes());
  }
  return text + (source.kind == Kind::Inherit ? ", held by no layer: zeros" : ", stored as zeros");
}

void put_source(Json& json, const Chain& chain, const Mapping& source) {
  json["layer"] = source.layer;
  json["file"] = escaped(chain.layers()[source.layer].path());
  json["host_offset"] = source.storage == Storage::None ? Json(nullptr) : Json(source.host.bytes());
  json["compressed"] = source.storage == Storage::Compressed;
  json["kind"] = to_string(source.kind);
}

Json to_json(const Chain& chain, const Damage& damage) {
  Json json;
  json["offset"] = damage.range.begin.bytes();
  json["length"] = damage.range.length();
  json["cause"] = to_string(damage.cause);
  json["manifest_of_layer"] = damage.layer;
  put_source(json, chain, damage.source);
  json["stored_digest"] = damage.stored;
  json["found_digest"] = damage.found;
  return json;
}

Json to_json(const Chain& chain, const Difference& difference) {
  Json json;
  json["offset"] = difference.range.begin.bytes();
  json["length"] = difference.range.length();
  json["cause"] = to_string(difference.cause);
  put_source(json, chain, difference.source);
  json["stored_digest"] = or_null(difference.stored_digest);
  json["chain_digest"] = difference.chain_digest;
  json["live_digest"] = difference.live_digest;
  json["live_moved"] = difference.cause == Cause::Moving;
  return json;
}

Json to_json(const Unreadable& unreadable) {
  return {{"offset", unreadable.range.begin.bytes()},
          {"length", unreadable.range.length()},
          {"outcome", to_string(unreadable.outcome)},
          {"message", escaped(unreadable.message)}};
}

Json to_json(const Proof& proof) {
  Json json;
  json["blocks"] = proof.blocks;
  json["zero_blocks"] = proof.zero_blocks;
  json["partial_blocks"] = proof.partial_blocks;
  json["read_bytes"] = proof.read_bytes;
  json["unknown_bytes"] = proof.unknown_bytes;
  json["damaged_bytes"] = proof.damaged_bytes;
  json["unread_bytes"] = proof.unreadable_bytes;
  json["stopped_at"] = proof.stopped_at ? Json(*proof.stopped_at) : Json(nullptr);
  return json;
}

Json to_json(const ManifestVerdict& verdict) {
  Json json;
  json["state"] = !verdict.exists ? "missing" : verdict.outcome == Outcome::Done ? "good" : "bad";
  json["outcome"] = to_string(verdict.outcome);
  const bool known = verdict.summary.has_value();
  json["algorithm"] = known ? Json(to_string(verdict.summary->header.algorithm)) : Json(nullptr);
  json["cryptographic"] = known ? Json(is_cryptographic(verdict.summary->header.algorithm)) : Json(nullptr);
  const bool has_root = known && verdict.summary->root;
  json["root"] =
      has_root ? Json(named(verdict.summary->header.algorithm, *verdict.summary->root)) : Json(nullptr);
  json["root_follows"] = has_root ? Json(verdict.root_follows) : Json(nullptr);
  json["own_digest"] = known ? Json(verdict.summary->own_digest.hex()) : Json(nullptr);
  json["accepted"] = known ? or_null(verdict.summary->header.accepted) : Json(nullptr);
  json["signed"] = known && verdict.summary->signature;
  json["trusted_key"] = or_null(verdict.trusted_key);
  json["problems"] = Json::array();
  for (const std::string& problem : verdict.problems) json["problems"].push_back(escaped(problem));
  return json;
}

std::string manifest_text(const ManifestVerdict& verdict) {
  if (!verdict.exists) return "no manifest";
  if (!verdict.summary) return "its manifest cannot be read";
  const bool followed = verdict.outcome != Outcome::Incomplete;
  if (verdict.outcome != Outcome::Done && followed) return "its manifest does not match";
  std::string text =
      verdict.summary->root
          ? fmt::format("root {}", named(verdict.summary->header.algorithm, *verdict.summary->root))
          : "root unknown";
  if (!is_cryptographic(verdict.summary->header.algorithm)) text += " (not cryptographic)";
  if (!followed) text += " (not followed to the bottom)";
  if (!verdict.summary->header.accepted.empty())
    text += ", " + accepted_text(verdict.summary->header.accepted);
  if (!verdict.trusted_key.empty()) text += ", signed by " + escaped(verdict.trusted_key);
  return text;
}

// Why it was sealed on another parent than the recorded one is not known; that it was, is said.
bool is_resolved(const LayerProof& layer) {
  const ManifestVerdict& manifest = layer.manifest;
  if (!layer.same_content.empty()) return true;
  return manifest.belongs && !manifest.is_misplaced && manifest.summary->header.is_resealed();
}

std::string metadata_text(const Json& layer) {
  return layer["metadata"]["outcome"] == to_string(Outcome::Done) ? "metadata sound" : "metadata not sound";
}

std::string content_text(const LayerProof& layer) {
  if (!layer.proof) return "content not checked";
  const Proof& proof = *layer.proof;
  return fmt::format("{} blocks held against their digests ({} read), {} damaged{}", proof.blocks,
                     human_size(proof.read_bytes),
                     proof.damaged_bytes == 0 ? "none" : human_size(proof.damaged_bytes),
                     proof.unreadable_bytes == 0
                         ? ""
                         : fmt::format(", {} could not be read", human_size(proof.unreadable_bytes)));
}

}  // namespace

VerifyReport::VerifyReport(const VerifyOptions& options, std::string mode)
    : o_(options), mode_(std::move(mode)) {
  live_["against"] = or_null(o_.against);
  for (const char* const field :
       {"live_bytes", "chain_bytes", "compared_bytes", "live_digest", "chain_digest"}) {
    live_[field] = nullptr;
  }
}

// Of one layer: what it holds was checked, the rest of the disk is inherited.
Json VerifyReport::content_json(const LayerProof& layer) const {
  Json json = to_json(*layer.proof);
  const bool whole = o_.selection.is_everything() && !layer.proof->stopped_at;
  json["reach"] = whole ? "everything" : "a part";
  json["inherited_blocks"] =
      whole ? Json(layer.manifest.summary->header.blocks() - layer.proof->blocks) : Json(nullptr);
  return json;
}

std::string accepted_text(const std::string& recorded_digest) {
  return "sealed on the operator's word over a different recorded digest, " + escaped(recorded_digest);
}

void VerifyReport::note(const std::string& message) { layer_notes_.push_back(message); }

void VerifyReport::add(Outcome outcome, const std::string& message) {
  selected_ = worse(selected_, outcome);
  verdicts_.push_back({{"outcome", to_string(outcome)}, {"message", escaped(message)}});
}

void VerifyReport::take(const CheckReport& metadata) {
  for (const Survey::Problem& problem : metadata.problems)
    add(problem.outcome, with_hint(problem.message, problem.remedy));
  for (std::size_t i = 0; i < metadata.layers.size(); ++i) {
    const LayerCheck& layer = metadata.layers[i];
    const FindingList& findings = layer.findings;
    Json json;
    json["index"] = i;
    json["file"] = escaped(layer.path);
    json["metadata"] = {{"outcome", to_string(layer.outcome(false))},
                        {"data_losses", findings.count(Severity::DataLoss)},
                        {"harmless", findings.count(Severity::Harmless)},
                        {"leaks", findings.count(Severity::Leak)}};
    layers_.push_back(json);
    if (layer.outcome(false) == Outcome::Mismatch) {
      const auto worst = std::ranges::max_element(findings.kept(), {}, &Finding::severity);
      add(Outcome::Mismatch, fmt::format("{}: metadata: {}{}; qchain check lists all", layer.path,
                                         describe(*worst), findings.kept().size() > 1 ? " and more" : ""));
    }
    for (const std::string& what : layer.unchecked) {
      add(Outcome::Incomplete, fmt::format("{}: {}", layer.path, what));
    }
  }
}

void VerifyReport::take(const Chain& chain, const std::vector<LayerProof>& layers) {
  const bool content = mode_ == "drill";
  text_ += fmt::format("{}: {} layers\n", escaped(o_.image), layers.size());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const LayerProof& layer = layers[i];
    // What manifests cannot tell, the live side does.
    if (content || layer.manifest.outcome != Outcome::Incomplete) {
      for (const std::string& problem : layer.manifest.problems) add(layer.manifest.outcome, problem);
    }
    if (!layer.same_content.empty()) {
      note(
          fmt::format("{}: the content is what was recorded ({}); the layer was rewritten by another tool "
                      "since; --seal makes it provable block by block again",
                      layer.file, layer.same_content));
    }
    if (layer.manifest.summary && !layer.manifest.summary->header.accepted.empty()) {
      note(fmt::format("{}: {}", layer.file, accepted_text(layer.manifest.summary->header.accepted)));
    }
    text_ += fmt::format("{:3} {}: {}; {}\n", i, escaped(layer.file), manifest_text(layer.manifest),
                         content ? content_text(layer) : metadata_text(layers_[i]));
    if (layer.failure.outcome != Outcome::Done) add(layer.failure.outcome, layer.failure.message);
    layers_[i]["manifest"] = to_json(layer.manifest);
    layers_[i]["content"] = layer.proof ? content_json(layer) : Json(nullptr);
    layers_[i]["same_content"] = or_null(layer.same_content);
    const std::optional<Identity> identity = chain.layers()[i].identity();
    layers_[i]["layer_id"] = identity ? Json(identity->id) : Json(nullptr);
    layers_[i]["checkpoint"] = identity ? or_null(identity->checkpoint) : Json(nullptr);
    if (!content) continue;
    if (layer.proof) list(chain, *layer.proof, layer.file);
    if (layer.failure.outcome != Outcome::Done) continue;
    if (!layer.manifest.exists) {
      add(Outcome::Incomplete, fmt::format("{}: no manifest: its content was not checked", layer.file));
    } else if (layer.manifest.summary && !layer.manifest.summary->root) {
      add(Outcome::Incomplete,
          fmt::format("{}: the digest of the whole disk is unknown; verify --seal finds it out", layer.file));
    }
  }
  take_links(chain, layers);
  if (!layers.empty() && layers.front().manifest.summary && layers.front().manifest.summary->root) {
    const ManifestSummary& top = *layers.front().manifest.summary;
    root_ = named(top.header.algorithm, *top.root);
  }
}

// A link that does not match counts unless the content was proven without it, or somebody has sealed the
// layer where it stands.
void VerifyReport::take_links(const Chain& chain, const std::vector<LayerProof>& layers) {
  for (const Survey::Problem& problem : chain.link_problems()) {
    if (is_resolved(layers[problem.layer])) {
      note(problem.message);
    } else {
      add(problem.outcome, with_hint(problem.message, problem.remedy));
    }
  }
}

void VerifyReport::list(const Chain& chain, const Proof& proof, const std::string& read_from) {
  read_bytes_ += proof.read_bytes;
  asserted_bytes_ += proof.zero_blocks * kDigestBlock;
  damaged_bytes_ += proof.damaged_bytes;
  unread_bytes_ += proof.unreadable_bytes;
  std::vector<std::string> lines;
  std::uint64_t listed = 0;
  for (const Damage& damage : proof.damages) {
    damages_.push_back(to_json(chain, damage));
    lines.push_back(damage_text(chain, damage));
    listed += damage.range.length();
  }
  all_listed_ = all_listed_ && listed == proof.damaged_bytes;
  add_lines(lines);
  if (proof.damaged_bytes != 0) {
    add(Outcome::Mismatch,
        fmt::format("{}: {} are not what the manifest says, the first at guest {}", read_from,
                    human_size(proof.damaged_bytes), to_string(proof.damages.front().range)));
  }
  for (const Unreadable& unread : proof.unreadable) {
    unread_.push_back(to_json(unread));
    add(unread.outcome, fmt::format("{}: guest {}: {}", read_from, to_string(unread.range), unread.message));
  }
  if (proof.unknown_bytes != 0) {
    add(Outcome::Incomplete, fmt::format("{}: no manifest tells what {} of it should be", read_from,
                                         human_size(proof.unknown_bytes)));
  }
  if (proof.stopped_at) {
    add(Outcome::Incomplete, fmt::format("{}: stopped at guest offset {:#x}, as --max-duration asks",
                                         read_from, *proof.stopped_at));
  }
}

void VerifyReport::take(const Chain& chain, const Proof& proof, std::uint64_t live_bytes) {
  live_["live_bytes"] = live_bytes;
  live_["chain_bytes"] = chain.top().true_length();
  list(chain, proof, o_.against);
  if (align_up(chain.top().true_length(), kSectorSize) != align_up(live_bytes, kSectorSize)) {
    add(Outcome::Mismatch,
        fmt::format("{}: has {} bytes, and the chain {}", o_.against, live_bytes, chain.top().true_length()));
  }
  add(Outcome::Incomplete, "--manifest-only: the bytes of the chain were not read");
}

void VerifyReport::take(const Chain& chain, const Comparison& comparison, std::uint64_t live_bytes) {
  read_bytes_ += comparison.read_bytes;
  asserted_bytes_ += comparison.compared_bytes - comparison.read_bytes;
  damaged_bytes_ += comparison.different_bytes;
  unread_bytes_ += comparison.unread_bytes;
  live_["live_bytes"] = live_bytes;
  live_["chain_bytes"] = chain.top().true_length();
  live_["compared_bytes"] = comparison.compared_bytes;
  live_["live_digest"] = comparison.live ? Json(comparison.live->hex()) : Json(nullptr);
  live_["chain_digest"] = comparison.chain ? Json(comparison.chain->hex()) : Json(nullptr);
  if (align_up(chain.top().true_length(), kSectorSize) != align_up(live_bytes, kSectorSize)) {
    add(Outcome::Mismatch, fmt::format("{}: the chain has {} bytes and the live export {}", o_.image,
                                       chain.top().true_length(), live_bytes));
  }
  std::vector<std::string> lines;
  std::uint64_t listed = 0;
  for (const Difference& difference : comparison.differences) {
    damages_.push_back(to_json(chain, difference));
    lines.push_back(difference_text(chain, difference));
    listed += difference.range.length();
  }
  all_listed_ = all_listed_ && listed == comparison.different_bytes;
  add_lines(lines);
  // All of one cause are one verdict, whether the list has them or not.
  for (std::size_t i = 0; i < kCauses; ++i) {
    const auto cause = static_cast<Cause>(i);
    if (comparison.bytes_of[i] == 0) continue;
    const auto first = std::ranges::find(comparison.differences, cause, &Difference::cause);
    add(cause == Cause::Moving ? Outcome::Inconclusive : Outcome::Mismatch,
        fmt::format(
            "{}: {} differ from {} ({}){}", o_.image, human_size(comparison.bytes_of[i]), o_.against,
            to_string(cause),
            first == comparison.differences.end() ? "" : ", the first at guest " + to_string(first->range)));
  }
  if (comparison.unread_outcome != Outcome::Done) {
    add(comparison.unread_outcome,
        fmt::format("{}: {} could not be compared", o_.image, human_size(comparison.unread_bytes)));
  }
  for (const Unreadable& unread : comparison.unread) {
    unread_.push_back(to_json(unread));
    add(unread.outcome, fmt::format("{}: not compared: {}", to_string(unread.range), unread.message));
  }
  if (comparison.stopped_at) {
    add(Outcome::Incomplete,
        fmt::format("stopped at guest offset {:#x}, as --max-duration asks", *comparison.stopped_at));
  }
}

std::string VerifyReport::damage_text(const Chain& chain, const Damage& damage) const {
  return fmt::format("  guest {} ({}): {}; {}; stored {}, found {}\n", to_string(damage.range),
                     human_size(damage.range.length()), to_string(damage.cause),
                     source_text(chain, damage.source), damage.stored, damage.found);
}

std::string VerifyReport::difference_text(const Chain& chain, const Difference& difference) const {
  return fmt::format("  guest {} ({}): {}; {}; chain {}, live {}{}\n", to_string(difference.range),
                     human_size(difference.range.length()), to_string(difference.cause),
                     source_text(chain, difference.source), difference.chain_digest, difference.live_digest,
                     difference.stored_digest.empty() ? "" : ", stored " + difference.stored_digest);
}

void VerifyReport::add_lines(const std::vector<std::string>& lines) {
  for (std::size_t i = 0; i < std::min(lines.size(), kMaxPrinted); ++i) text_ += lines[i];
  if (lines.size() > kMaxPrinted) {
    text_ += fmt::format("  and {} more ranges; --json lists them\n", lines.size() - kMaxPrinted);
  }
}

Outcome VerifyReport::outcome() const {
  return o_.selection.is_everything() ? selected_ : worse(selected_, Outcome::Incomplete);
}

std::string VerifyReport::conclusion() const {
  const std::string name = escaped(o_.image);
  if (selected_ != Outcome::Done) return fmt::format("{}: {}\n", name, to_string(outcome()));
  std::string what =
      mode_ == "drill"
          ? fmt::format("every stored digest of {} layers fits, and so do their roots", layers_.size())
          : fmt::format("equal to {}", escaped(o_.against));
  what +=
      fmt::format("; {} read, {} known to be zeros", human_size(read_bytes_), human_size(asserted_bytes_));
  if (!root_.empty()) what += "; digest " + root_;
  if (o_.selection.parts > 1) {
    return fmt::format("{}: part {} of {}, not all of it: {}\n", name, o_.selection.part, o_.selection.parts,
                       what);
  }
  if (!o_.selection.only.empty()) {
    return fmt::format("{}: what an earlier report had found, and nothing else: {}\n", name, what);
  }
  return fmt::format("{}: {}\n", name, what);
}

Outcome VerifyReport::finish(Console& console) {
  console.print(text_);
  for (const std::string& note : layer_notes_) console.note(note);
  for (const Json& verdict : verdicts_) console.error(verdict["message"].get<std::string>());
  console.print(conclusion());

  Json fields;
  fields["image"] = escaped(o_.image);
  fields["mode"] = mode_;
  fields["selection"] = {{"part", o_.selection.part},
                         {"parts", o_.selection.parts},
                         {"only_earlier_findings", !o_.selection.only.empty()}};
  fields["selected_outcome"] = to_string(selected_);
  fields["verdicts"] = verdicts_;
  fields["root"] = root_.empty() ? Json(nullptr) : Json(root_);
  fields["read_bytes"] = read_bytes_;
  fields["asserted_bytes"] = asserted_bytes_;
  fields["different_bytes"] = damaged_bytes_;
  fields["unread_bytes"] = unread_bytes_;
  fields.update(live_);
  fields["layers"] = layers_;
  fields["differences"] = damages_;
  fields["all_listed"] = all_listed_;
  fields["unread"] = unread_;
  fields["versions"] = {{"manifest", 1}, {"openssl", crypto_version()}, {"libnbd", nbd_version()}};
  fields["time"] = iso_time(std::time(nullptr));
  fields["seconds"] = std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
  if (o_.record) {
    try {
      append_proof(o_.image, outcome(), fields);
    } catch (const Error& error) {
      add(error.outcome(), error.what());
      console.error(error.what());
      fields["verdicts"] = verdicts_;
      fields["selected_outcome"] = to_string(selected_);
    }
  }
  console.document(outcome(), fields);
  return outcome();
}

}  // namespace qchain
