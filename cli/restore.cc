#include "cli/restore.h"

#include <fmt/format.h>

#include <memory>

#include "cli/open_chain.h"
#include "cli/restore_job.h"

namespace qchain {

namespace po = boost::program_options;

namespace {

// What a manifest says of itself and its layer; nothing is written before that is known to be good.
void require_good_manifests(const RestoreOptions& o, const std::vector<LayerDrill>& layers) {
  for (const LayerDrill& layer : layers) {
    if (layer.failure.outcome != Outcome::Done) throw Error(layer.failure.outcome, layer.failure.message);
    const ManifestVerdict& verdict = layer.manifest;
    if (verdict.outcome == Outcome::Done || verdict.outcome == Outcome::Incomplete) continue;
    throw Error(
        verdict.outcome,
        fmt::format(
            "{}; nothing was written; 'qchain verify {}' names what is damaged, --salvage restores what is "
            "there all the same",
            verdict.problems.front(), o.image));
  }
}

// What a salvage takes from manifests has to be good all the same; else it does without.
bool are_good(const std::vector<LayerDrill>& layers, Console& console) {
  bool good = true;
  for (const LayerDrill& layer : layers) {
    for (const std::string& problem : layer.manifest.problems) console.warn(problem);
    if (layer.failure.outcome != Outcome::Done) console.warn(layer.failure.message);
    const Outcome outcome = worse(layer.failure.outcome, layer.manifest.outcome);
    good = good && (outcome == Outcome::Done || outcome == Outcome::Incomplete);
  }
  return good;
}

RestoreProof prepare_proof(const RestoreOptions& o, const Chain& chain, Console& console) {
  RestoreProof proof;
  if (o.no_verify) return proof;
  DrillOptions options;
  options.content = false;
  for (const std::string& path : o.trust_keys) options.trusted.emplace_back(path);
  const std::vector<LayerDrill> layers = drill(chain, options);
  if (!o.salvage) require_good_manifests(o, layers);
  if (o.salvage && !are_good(layers, console)) return proof;
  proof.digests = digests_from(chain, 0);
  const ManifestVerdict& top = layers.front().manifest;
  if (top.summary && top.summary->root) {
    proof.root = named(top.summary->header.algorithm, *top.summary->root);
    proof.root_follows = top.root_follows;
  }
  // What the manifests do not tell, the digest in the header does, of the whole.
  const std::optional<Identity> identity = chain.top().identity();
  const bool is_told = proof.digests && proof.digests->is_complete() && proof.root_follows;
  if (!is_told && identity && o.trust_keys.empty()) proof.recorded = identity->digest;
  return proof;
}

// Of a chain with a layer that is gone or damaged, all that can be had is wanted where that was asked for.
std::unique_ptr<Chain> open_to_restore(const RestoreOptions& o, Console& console) {
  if (!o.salvage) {
    return open_chain(o.image, ImageFormat::Qcow2, o.common, console,
                      o.no_verify ? Links::Warn : Links::Require);
  }
  std::unique_ptr<Chain> chain = Chain::open_for_salvage(o.image, ImageFormat::Qcow2, o.common.open);
  warn_about(*chain, console);
  return chain;
}

}  // namespace

std::optional<RestoreOptions> parse_restore(const std::vector<std::string>& words) {
  CommandLine line("restore", "IMAGE DEST [options]",
                   "Writes out the disk that a chain describes, at the point in time of IMAGE: to a raw "
                   "file, which\nbecomes sparse, "
                   "to standard output (-), or onto a block device or an NBD export, all of which that\nthe "
                   "disk covers is "
                   "overwritten; or, with --format qcow2, as one full layer. Every block is held\nagainst "
                   "its stored digest before "
                   "it is written.");
  line.add_positional("IMAGE");
  line.add_positional("DEST");
  line.add()("format", po::value<std::string>()->value_name("FORMAT"),
             "raw (default), or qcow2: one full layer, with a manifest");
  line.add()("no-verify",
             "do not look at the manifests; what cannot be read becomes zeros and is listed (4)");
  line.add()("salvage", "write all that can be read, and list what cannot, or is not what was backed up (4)");
  line.add()("trust-key", po::value<std::vector<std::string>>()->value_name("FILE"),
             "every manifest has to be signed by this Ed25519 key (PEM; repeatable)");
  line.add()("read-back", "read again what was written, past the page cache, and compare (1 if it differs)");
  line.add()("zero-rest", "zero what a device or an export has behind the end of the disk");
  line.add()("preallocate", "set aside the space of zeros too");
  line.add()("force", "replace a file that exists");
  line.add_nbd();
  if (!line.parse(words)) return std::nullopt;
  RestoreOptions o;
  o.common = line.common();
  o.nbd = line.nbd();
  o.image = line.required("IMAGE");
  o.destination = line.required("DEST");
  o.format = image_format_named(line.text("format", "raw"), "--format");
  o.no_verify = line.has("no-verify");
  o.trust_keys = line.texts("trust-key");
  o.read_back = line.has("read-back");
  o.salvage = line.has("salvage");
  o.zero_rest = line.has("zero-rest");
  o.preallocate = line.has("preallocate");
  o.force = line.has("force");
  if (o.no_verify && !o.trust_keys.empty()) {
    throw Error(Outcome::Usage, "--trust-key is about manifests, and --no-verify does not look at them");
  }
  if (o.salvage && (o.no_verify || !o.trust_keys.empty())) {
    throw Error(Outcome::Usage, "--salvage goes neither with --no-verify nor with --trust-key");
  }
  if (o.read_back && o.format == ImageFormat::Qcow2) {
    throw Error(Outcome::Usage, "--read-back is for raw targets: qchain verify proves a layer");
  }
  return o;
}

Outcome restore(const RestoreOptions& o, Console& console) {
  const std::unique_ptr<Chain> chain = open_to_restore(o, console);
  const std::unique_ptr<RestoreTarget> target = open_restore_target(o, *chain, console);
  RestoreJob job{o, *chain, console, prepare_proof(o, *chain, console), 0, false, {}, {}, {}, 0, {}};
  target->run(job);
  console.result_stands();
  return report_restore(job, *target);
}

}  // namespace qchain
