#include "cli/restore.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <memory>

#include "cli/open_chain.h"
#include "cli/text.h"
#include "extent/engine.h"
#include "extent/nbd_export.h"
#include "extent/publication.h"
#include "extent/raw_copy.h"
#include "qcow2/chain.h"
#include "verify/drill.h"

namespace qchain {

namespace po = boost::program_options;

namespace {

// What stands under the destination's name.
struct Destination {
  bool exists = false;
  bool is_device = false;
  FileIdentity identity;
};

Destination look_at(const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) return {};
  return {true, S_ISBLK(status.st_mode), {status.st_dev, status.st_ino}};
}

CopyResult to_file(const RestoreOptions& o, Chain& chain, const CopyOptions& copy) {
  Publication publication(o.destination, o.force ? Existing::Replace : Existing::Refuse);
  const GuestRange disk = guest_range(0, chain.top().true_length());
  const CopyResult copied = copy_raw(chain, disk, publication.file(), TargetContent::Zeros, copy);
  publication.publish();
  return copied;
}

CopyResult to_device(const RestoreOptions& o, Chain& chain, const CopyOptions& copy) {
  // O_EXCL refuses a device that is mounted or otherwise in use.
  const int descriptor = open(o.destination.c_str(), O_RDWR | O_EXCL | O_CLOEXEC);
  if (descriptor < 0) throw system_error(fmt::format("{}: cannot open", o.destination), errno);
  const File device(descriptor, o.destination);
  const std::uint64_t size = chain.size();
  if (device.size() < size) {
    throw Error(Outcome::Usage, fmt::format("{}: has {} bytes and the disk {}; use a larger device",
                                            o.destination, device.size(), size));
  }
  try {
    const CopyResult copied = copy_raw(chain, guest_range(0, size), device, TargetContent::Unknown, copy);
    device.sync();
    return copied;
  } catch (const Error& error) {
    throw Error(error.outcome(),
                fmt::format("{}; the content of {} is not complete", error.what(), o.destination));
  }
}

// What the copy is held against; without digests, nothing.
struct RestoreProof {
  std::unique_ptr<ChainDigests> digests;
  std::string root;  // "unknown" where it is
};

// Nothing is written before the manifests themselves are known to be good.
RestoreProof prepare_proof(const RestoreOptions& o, const Chain& chain) {
  RestoreProof proof;
  if (o.no_verify) return proof;
  DrillOptions options;
  options.content = false;
  for (const std::string& path : o.trust_keys) options.trusted.emplace_back(path);
  const std::vector<LayerDrill> layers = drill(chain, options);
  for (const LayerDrill& layer : layers) {
    const ManifestVerdict& verdict = layer.manifest;
    if (verdict.outcome != Outcome::Done && verdict.outcome != Outcome::Incomplete) {
      throw Error(verdict.outcome,
                  fmt::format("{}; nothing was written; qchain verify tells more, --no-verify "
                              "restores what is there all the same",
                              verdict.problems.front()));
    }
  }
  proof.digests = digests_from(chain, 0);
  if (!proof.digests) return proof;
  const ManifestSummary& top = *layers.front().manifest.summary;
  proof.root = top.root ? named(top.header.algorithm, *top.root) : "unknown";
  return proof;
}

}  // namespace

std::optional<RestoreOptions> parse_restore(const std::vector<std::string>& words) {
  CommandLine line("restore", "IMAGE DEST [options]",
                   "Writes out the disk that a chain describes, at the point in time of IMAGE: to a raw "
                   "file, which\nbecomes sparse, or onto a block device, whose old content never shows "
                   "through. Every\nblock is held against its stored digest before it is written.");
  line.add_positional("IMAGE");
  line.add_positional("DEST");
  line.add()("no-verify", "do not look at the manifests, and exit with 0 all the same");
  line.add()("trust-key", po::value<std::vector<std::string>>()->value_name("FILE"),
             "every manifest has to be signed by this Ed25519 key (PEM; repeatable)");
  line.add()("force", "replace a file that exists");
  if (!line.parse(words)) return std::nullopt;
  RestoreOptions o;
  o.common = line.common();
  o.image = line.required("IMAGE");
  o.destination = line.required("DEST");
  o.no_verify = line.has("no-verify");
  o.trust_keys = line.texts("trust-key");
  o.force = line.has("force");
  if (o.no_verify && !o.trust_keys.empty()) {
    throw Error(Outcome::Usage, "--trust-key is about manifests, and --no-verify does not look at them");
  }
  return o;
}

Outcome restore(const RestoreOptions& o, Console& console) {
  if (is_nbd_uri(o.destination)) {
    throw Error(Outcome::Usage, fmt::format("{}: restoring to an export is not possible yet; name a file "
                                            "or a block device",
                                            o.destination));
  }
  const std::unique_ptr<Chain> chain = open_chain(o.image, ImageFormat::Qcow2, o.common, console);
  const Destination destination = look_at(o.destination);
  if (destination.exists && chain->contains(destination.identity)) {
    throw Error(Outcome::Usage, fmt::format("{}: is a layer of the chain that is restored", o.destination));
  }
  const RestoreProof proof = prepare_proof(o, *chain);
  std::uint64_t unknown_bytes = 0;
  Progress progress(console.progress_style(), "restore", chain->size());
  CopyOptions copy;
  copy.workers = default_workers();
  copy.progress = progress.updater();
  if (proof.digests) copy.make_watcher = guard(*chain, *proof.digests, unknown_bytes);
  const CopyResult copied = destination.is_device ? to_device(o, *chain, copy) : to_file(o, *chain, copy);
  if (proof.digests) proof.digests->finish();

  const bool verified = proof.digests && unknown_bytes == 0;
  const Outcome outcome = verified || o.no_verify ? Outcome::Done : Outcome::Incomplete;
  const std::string words = o.no_verify      ? "not verified, as asked"
                            : !proof.digests ? "not verified: the chain has no manifest"
                            : verified
                                ? "every block verified; digest " + proof.root
                                : fmt::format("{} of it not verified: no manifest tells what it should be",
                                              human_size(unknown_bytes));
  console.print(fmt::format("{}: restored from {}, {}, {} of data; {}\n", escaped(o.destination),
                            escaped(o.image), human_size(chain->size()), human_size(copied.data_bytes),
                            words));
  Json fields;
  fields["image"] = escaped(o.image);
  fields["destination"] = escaped(o.destination);
  fields["bytes"] = chain->top().true_length();
  fields["data_bytes"] = copied.data_bytes;
  fields["zero_bytes"] = copied.zero_bytes;
  fields["verified"] = verified;
  fields["unknown_bytes"] = proof.digests ? Json(unknown_bytes) : Json(nullptr);
  fields["root"] = proof.root.empty() ? Json(nullptr) : Json(proof.root);
  fields["proof"] = words;
  console.document(outcome, fields);
  return outcome;
}

}  // namespace qchain
