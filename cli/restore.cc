#include "cli/restore.h"

#include <fmt/format.h>

#include <memory>

#include "cli/command_line.h"
#include "cli/open_chain.h"
#include "cli/restore_job.h"

namespace qchain {

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

// What no combination of other things can make right.
void judge(const RestoreOptions& o) {
  if (o.no_verify && !o.trust_keys.empty()) {
    throw Error(Outcome::Usage, "--trust-key checks the manifests, and --no-verify ignores them: choose one");
  }
  if (o.salvage && (o.no_verify || !o.trust_keys.empty())) {
    throw Error(Outcome::Usage, "--salvage cannot be combined with --no-verify or --trust-key");
  }
  if (o.read_back && o.format == ImageFormat::Qcow2) {
    throw Error(Outcome::Usage, "--read-back is for raw targets: verify a qcow2 image with 'qchain verify'");
  }
}

}  // namespace

CommandLine command_line_for(RestoreOptions& o) {
  CommandLine line(
      "restore", "IMAGE DEST [options]",
      "Writes the disk that a chain describes, at the point in time of IMAGE: to a sparse raw file, "
      "to standard output (-), or over a block device or an NBD export; or, with --format qcow2, to "
      "one full image. Every block is verified against its stored digest before it is written.\n"
      "On a device or an export, everything from the start to the size of the disk is overwritten.");
  line.positional("IMAGE", o.image);
  line.positional("DEST", o.destination);
  line.value("format", "FORMAT", o.format, image_format_named,
             "output format: raw (default), or qcow2 for one full image with a manifest");
  line.flag("no-verify", o.no_verify,
            "ignore the manifests; write zeros for what cannot be read, and list it (exit code 4)");
  line.flag("salvage", o.salvage,
            "write all that can be read; list what cannot be read, or differs from what was backed up "
            "(exit code 4)");
  line.values("trust-key", "FILE", o.trust_keys,
              "require every manifest to be signed by this Ed25519 public key (PEM; repeatable)");
  line.flag("read-back", o.read_back,
            "read back what was written, bypassing the page cache, and compare (exit code 1 if it differs)");
  line.flag("zero-rest", o.zero_rest, "zero what a device or an export has after the end of the disk");
  line.flag("preallocate", o.preallocate, "allocate space for zeros too");
  line.flag("force", o.force, "replace an existing file");
  add_nbd_options(line, o.nbd);
  add_common_options(line, o.common);
  line.afterwards([&o](const CommandLine&) { judge(o); });
  return line;
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
