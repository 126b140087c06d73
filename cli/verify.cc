#include "cli/verify.h"

#include <fmt/format.h>

#include <memory>

#include "cli/open_chain.h"
#include "cli/text.h"
#include "extent/nbd_export.h"
#include "qcow2/chain.h"
#include "verify/compare.h"

namespace qchain {

namespace po = boost::program_options;

namespace {

constexpr std::size_t kMaxPrinted = 20;

std::string describe(const Difference& difference, const Chain& chain) {
  const Mapping& source = difference.source;
  const std::string file = escaped(chain.layers()[source.layer].path());
  std::string supplied = fmt::format("layer {} ({})", source.layer, file);
  if (source.storage == Storage::None) {
    supplied += source.kind == Kind::Inherit ? ", held by no layer: zeros" : ", stored as zeros";
  } else {
    supplied +=
        fmt::format(", {}host offset {:#x}", source.storage == Storage::Compressed ? "compressed at " : "",
                    source.host.bytes());
  }
  return fmt::format("  guest {} ({}): {}; chain {}, live {}{}\n", to_string(difference.range),
                     human_size(difference.range.length()), supplied, difference.chain_digest,
                     difference.live_digest, difference.live_moved ? "; the live side is moving" : "");
}

Json to_json(const Difference& difference, const Chain& chain) {
  const Mapping& source = difference.source;
  Json json;
  json["offset"] = difference.range.begin.bytes();
  json["length"] = difference.range.length();
  json["layer"] = source.layer;
  json["file"] = escaped(chain.layers()[source.layer].path());
  json["host_offset"] = source.storage == Storage::None ? Json(nullptr) : Json(source.host.bytes());
  json["compressed"] = source.storage == Storage::Compressed;
  json["kind"] = to_string(source.kind);
  json["chain_digest"] = difference.chain_digest;
  json["live_digest"] = difference.live_digest;
  json["live_moved"] = difference.live_moved;
  return json;
}

// Walks every table of every layer: a corrupt entry is an Error.
Outcome verify_metadata(const VerifyOptions& o, Chain& chain, Console& console) {
  Json layers = Json::array();
  for (const Layer& layer : chain.layers()) {
    usage_of(layer);
    layers.push_back(escaped(layer.path()));
  }
  console.print(
      fmt::format("{}: metadata and links of {} layers are sound; no content was checked: there "
                  "is no manifest, and no --against\n",
                  escaped(o.image), chain.layers().size()));
  Json fields;
  fields["image"] = escaped(o.image);
  fields["layers"] = layers;
  fields["content"] = "not checked";
  console.document(Outcome::Incomplete, fields);
  return Outcome::Incomplete;
}

Outcome verdict_on(const Comparison& comparison) {
  Outcome verdict = Outcome::Done;
  for (const Difference& difference : comparison.differences) {
    verdict = worse(verdict, difference.live_moved ? Outcome::Inconclusive : Outcome::Mismatch);
  }
  for (const Unread& unread : comparison.unread) verdict = worse(verdict, unread.outcome);
  return verdict;
}

Outcome verify_against(const VerifyOptions& o, Chain& chain, Console& console) {
  NbdExport live(o.nbd.target(o.against), {});
  Progress progress(console.progress_style(), "verify", std::max(chain.size(), live.size()));
  const Comparison comparison =
      compare(chain, live, {Algorithm::Sha256, o.nbd.workers(), progress.updater()});
  live.confirm();

  const Outcome verdict = verdict_on(comparison);
  for (const Unread& unread : comparison.unread) {
    console.error(fmt::format("{}: not compared: {}", to_string(unread.range), unread.message));
  }
  std::string text;
  if (align_up(chain.top().true_length(), kSectorSize) != align_up(live.size(), kSectorSize)) {
    text += fmt::format("{}: the chain has {} bytes and the live export {}\n", escaped(o.image),
                        chain.top().true_length(), live.size());
  }
  if (comparison.different_bytes > 0) {
    text += fmt::format("{}: {} differ from {}:\n", escaped(o.image), human_size(comparison.different_bytes),
                        escaped(o.against));
    std::size_t printed = 0;
    for (const Difference& difference : comparison.differences) {
      if (printed++ == kMaxPrinted) {
        text += fmt::format("  and {} more ranges; --json lists them\n",
                            comparison.differences.size() - kMaxPrinted);
        break;
      }
      text += describe(difference, chain);
    }
  }
  if (verdict == Outcome::Done) {
    text += fmt::format("{}: equal to {}: {} compared, {} of it read from both sides; sha256 {}\n",
                        escaped(o.image), escaped(o.against), human_size(comparison.compared_bytes),
                        human_size(comparison.read_bytes), comparison.live.hex());
  }
  console.print(text);

  Json fields;
  fields["image"] = escaped(o.image);
  fields["against"] = escaped(o.against);
  fields["chain_bytes"] = chain.top().true_length();
  fields["live_bytes"] = live.size();
  fields["compared_bytes"] = comparison.compared_bytes;
  fields["read_bytes"] = comparison.read_bytes;
  fields["different_bytes"] = comparison.different_bytes;
  fields["unread_bytes"] = comparison.unread_bytes;
  fields["algorithm"] = to_string(Algorithm::Sha256);
  const bool all_read = comparison.unread_bytes == 0;
  fields["chain_digest"] = all_read ? Json(comparison.chain.hex()) : Json(nullptr);
  fields["live_digest"] = all_read ? Json(comparison.live.hex()) : Json(nullptr);
  fields["differences"] = Json::array();
  for (const Difference& difference : comparison.differences) {
    fields["differences"].push_back(to_json(difference, chain));
  }
  console.document(verdict, fields);
  return verdict;
}

}  // namespace

std::optional<VerifyOptions> parse_verify(const std::vector<std::string>& words) {
  CommandLine line("verify", "IMAGE [--against URI] [options]",
                   "Proves that a chain is what the guest had: reads and hashes the chain and the live "
                   "export, and names\nevery range that differs. Without --against only the metadata is "
                   "checked, and the exit is 4.");
  line.add_positional("IMAGE");
  line.add()("against", po::value<std::string>()->value_name("URI"), "the live export");
  line.add_nbd();
  if (!line.parse(words)) return std::nullopt;
  VerifyOptions o;
  o.common = line.common();
  o.nbd = line.nbd();
  o.image = line.required("IMAGE");
  o.against = line.text("against");
  return o;
}

Outcome verify(const VerifyOptions& o, Console& console) {
  const std::unique_ptr<Chain> chain = open_chain(o.image, ImageFormat::Qcow2, o.common, console);
  return o.against.empty() ? verify_metadata(o, *chain, console) : verify_against(o, *chain, console);
}

}  // namespace qchain
