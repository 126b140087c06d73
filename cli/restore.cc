#include "cli/restore.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <functional>
#include <memory>
#include <thread>

#include "cli/flat_layer.h"
#include "cli/open_chain.h"
#include "cli/text.h"
#include "extent/interrupt.h"
#include "extent/nbd_export.h"
#include "extent/nbd_writer.h"
#include "extent/publication.h"
#include "extent/raw_copy.h"
#include "extent/uncached_file.h"
#include "qcow2/chain.h"
#include "verify/drill.h"
#include "verify/read_back.h"

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

// What the copy is held against; without digests, nothing.
struct RestoreProof {
  std::unique_ptr<ChainDigests> digests;
  std::string root;  // empty: unknown
  bool root_follows =
      false;  // from the digests of all layers: nothing else binds the ones beneath to the top
};

// Nothing is written before the manifests themselves are known to be good.
RestoreProof prepare_proof(const RestoreOptions& o, const Chain& chain) {
  RestoreProof proof;
  if (o.no_verify) return proof;
  require_resolved_links(chain);
  DrillOptions options;
  options.content = false;
  for (const std::string& path : o.trust_keys) options.trusted.emplace_back(path);
  const std::vector<LayerDrill> layers = drill(chain, options);
  for (const LayerDrill& layer : layers) {
    if (layer.failure.outcome != Outcome::Done) throw Error(layer.failure.outcome, layer.failure.message);
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
  if (!layers.front().manifest.summary) return proof;  // the manifests beneath tell what they can
  const ManifestSummary& top = *layers.front().manifest.summary;
  if (top.root) proof.root = named(top.header.algorithm, *top.root);
  proof.root_follows = layers.front().manifest.root_follows;
  return proof;
}

// A restore under way, and what came of it.
struct Job {
  const RestoreOptions& o;
  Chain& chain;
  Console& console;
  RestoreProof proof;
  std::uint64_t unknown_bytes = 0;  // no manifest tells what they should be
  CopyResult copied;
  std::string layer_id;  // of the layer that was written; empty: none was
  std::optional<ReadBack> read_back;

  bool is_verified() const { return proof.digests && unknown_bytes == 0 && proof.root_follows; }
  Outcome read_back_outcome() const { return read_back ? read_back->outcome() : Outcome::Done; }
};

void copy(Job& job, CopyTarget& target, std::uint64_t length) {
  Progress progress(job.console.progress_style(), "restore", length);
  CopyOptions options;
  options.workers = job.o.nbd.workers(Work::ReadAndWrite);
  options.progress = progress.updater();
  if (job.proof.digests) options.make_watcher = guard(job.chain, *job.proof.digests, job.unknown_bytes);
  job.copied = copy_raw(job.chain, guest_range(0, length), target, options);
  if (job.proof.digests) job.proof.digests->finish();
  target.sync();
}

void read_again(Job& job, BlockDevice& target) {
  Progress progress(job.console.progress_style(), "read back", target.size());
  const std::unique_ptr<ChainDigests> digests = job.is_verified() ? digests_from(job.chain, 0) : nullptr;
  job.read_back =
      read_back(job.chain, target, digests.get(), job.o.nbd.workers(Work::Read), progress.updater());
}

void to_file(Job& job) {
  Publication publication(job.o.destination, job.o.force ? Existing::Replace : Existing::Refuse);
  publication.bypass_cache();
  const std::uint64_t length = job.chain.top().true_length();
  publication.file().resize(length);
  FileTarget target(publication.file(), TargetContent::Zeros);
  copy(job, target, length);
  if (job.o.read_back) {
    UncachedFile written(publication.file().path());
    read_again(job, written);
  }
  if (job.read_back_outcome() != Outcome::Done) return;
  publication.publish();
  unlink(manifest_path(job.o.destination).c_str());  // of a file that was replaced
}

void to_layer(Job& job) {
  Progress progress(job.console.progress_style(), "restore", job.chain.top().true_length());
  FlatLayerOptions options;
  options.existing = job.o.force ? Existing::Replace : Existing::Refuse;
  options.digests = job.proof.digests.get();
  options.expected_root = job.proof.root;
  options.workers = job.o.nbd.workers(Work::ReadAndWrite);
  options.progress = progress.updater();
  const FlatLayer flat = write_flat_layer(job.chain, job.o.destination, options);
  job.unknown_bytes = flat.unknown_bytes;
  job.copied = {flat.written.data_bytes, job.chain.top().true_length() - flat.written.data_bytes};
  job.layer_id = flat.id;
}

// How much of a device or export is written: the disk, with the zeros that fill its last sector as far as
// there is room for them.
std::uint64_t written_length(const Job& job, std::uint64_t size) {
  const std::uint64_t needed = job.chain.top().true_length();
  if (size < needed) {
    throw Error(Outcome::Usage, fmt::format("{}: has {} bytes and the disk {}; use a larger one",
                                            job.o.destination, size, needed));
  }
  return std::min(size, job.chain.size());
}

std::string not_complete(const Job& job) {
  return fmt::format("the content of {} is not complete", job.o.destination);
}

// From the first write on, a failure leaves something behind.
void overwrite(const Job& job, const std::function<void()>& write) {
  try {
    write();
  } catch (const Error& error) {
    throw Error(error.outcome(), fmt::format("{}; {}", error.what(), not_complete(job)));
  }
}

void to_device(Job& job) {
  // O_EXCL refuses a device that is mounted or otherwise in use.
  const int descriptor = open(job.o.destination.c_str(), O_RDWR | O_EXCL | O_CLOEXEC);
  if (descriptor < 0) throw system_error(fmt::format("{}: cannot open", job.o.destination), errno);
  File device(descriptor, job.o.destination);
  device.bypass_cache();
  const std::uint64_t length = written_length(job, device.size());
  overwrite(job, [&] {
    FileTarget target(device, TargetContent::Unknown);
    copy(job, target, length);
    if (!job.o.read_back) return;
    UncachedFile whole(job.o.destination);
    FirstBytes written(whole, length);
    read_again(job, written);
  });
}

// The server may have but one connection to give, and not have noticed yet that the last one is over.
NbdExport reopen(const NbdTarget& target) {
  constexpr std::chrono::milliseconds kPause{100};
  for (int attempts = 20;; --attempts) {
    try {
      return {target, {}};
    } catch (const Error& error) {
      if (error.outcome() != Outcome::Io || attempts == 0) throw;
    }
    throw_if_interrupted();
    std::this_thread::sleep_for(kPause);
  }
}

void to_export(Job& job) {
  const NbdTarget name = job.o.nbd.target(job.o.destination);
  std::optional<NbdWriter> target(name);
  const std::uint64_t length = written_length(job, target->size());
  overwrite(job, [&] {
    copy(job, *target, length);
    target.reset();
    if (!job.o.read_back) return;
    NbdExport live = reopen(name);
    OpaqueDevice whole(live);  // what the server says of zeros is no proof
    FirstBytes written(whole, length);
    read_again(job, written);
  });
}

std::string proof_in_words(const Job& job) {
  if (job.o.no_verify) return "not verified, as asked";
  if (!job.proof.digests) return "not verified: the chain has no manifest";
  if (job.is_verified()) return "every block verified; digest " + job.proof.root;
  if (job.unknown_bytes == 0) {
    return "every block held against a digest, but the digest of the whole disk is unknown; qchain verify "
           "--seal "
           "finds it out";
  }
  return fmt::format("{} of it not verified: no manifest tells what it should be",
                     human_size(job.unknown_bytes));
}

// Names what was read back and is not what was written.
void complain(const Job& job, bool to_file) {
  constexpr std::size_t kMaxPrinted = 20;
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
  job.console.error(to_file ? fmt::format("{}: was not made", job.o.destination) : not_complete(job));
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

Outcome report(const Job& job, bool to_file) {
  const RestoreOptions& o = job.o;
  const bool proven = job.is_verified() || o.no_verify;
  const Outcome outcome = worse(proven ? Outcome::Done : Outcome::Incomplete, job.read_back_outcome());
  const std::string proof = proof_in_words(job);
  if (job.read_back_outcome() != Outcome::Done) {
    complain(job, to_file);
  } else {
    job.console.print(fmt::format("{}: restored from {}, {}, {} of data; {}{}\n", escaped(o.destination),
                                  escaped(o.image), human_size(job.chain.size()),
                                  human_size(job.copied.data_bytes), proof,
                                  job.read_back           ? "; read back, and equal"
                                  : !job.layer_id.empty() ? "; layer " + job.layer_id
                                                          : ""));
  }
  Json fields;
  fields["image"] = escaped(o.image);
  fields["destination"] = escaped(o.destination);
  fields["bytes"] = job.chain.top().true_length();
  fields["data_bytes"] = job.copied.data_bytes;
  fields["zero_bytes"] = job.copied.zero_bytes;
  fields["verified"] = job.is_verified();
  fields["unknown_bytes"] = job.proof.digests ? Json(job.unknown_bytes) : Json(nullptr);
  fields["root"] = job.proof.root.empty() ? Json(nullptr) : Json(job.proof.root);
  fields["proof"] = proof;
  fields["format"] = job.layer_id.empty() ? "raw" : "qcow2";
  fields["layer_id"] = job.layer_id.empty() ? Json(nullptr) : Json(job.layer_id);
  fields["read_back"] = job.read_back ? to_json(*job.read_back) : Json(nullptr);
  job.console.document(outcome, fields);
  return outcome;
}

}  // namespace

std::optional<RestoreOptions> parse_restore(const std::vector<std::string>& words) {
  CommandLine line(
      "restore", "IMAGE DEST [options]",
      "Writes out the disk that a chain describes, at the point in time of IMAGE: to a raw "
      "file, which\nbecomes sparse, or onto a block device or an NBD export, whose old content "
      "never shows\nthrough; or, with --format qcow2, as one full layer. Every block is held against its "
      "stored digest\nbefore it is written.");
  line.add_positional("IMAGE");
  line.add_positional("DEST");
  line.add()("format", po::value<std::string>()->value_name("FORMAT"),
             "raw (default), or qcow2: one full layer, with a manifest");
  line.add()("no-verify", "do not look at the manifests, and exit with 0 all the same");
  line.add()("trust-key", po::value<std::vector<std::string>>()->value_name("FILE"),
             "every manifest has to be signed by this Ed25519 key (PEM; repeatable)");
  line.add()("read-back", "read again what was written, past the page cache, and compare (1 if it differs)");
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
  o.force = line.has("force");
  if (o.no_verify && !o.trust_keys.empty()) {
    throw Error(Outcome::Usage, "--trust-key is about manifests, and --no-verify does not look at them");
  }
  if (o.read_back && o.format == ImageFormat::Qcow2) {
    throw Error(Outcome::Usage, "--read-back is for raw targets: qchain verify proves a layer");
  }
  return o;
}

Outcome restore(const RestoreOptions& o, Console& console) {
  const std::unique_ptr<Chain> chain = open_chain(o.image, ImageFormat::Qcow2, o.common, console);
  const bool is_export = is_nbd_uri(o.destination);
  const Destination destination = is_export ? Destination() : look_at(o.destination);
  for (const char* const suffix : {"", ".partial", ".manifest", ".manifest.partial"}) {
    const Destination written = is_export ? Destination() : look_at(o.destination + suffix);
    if (!written.exists || !chain->contains(written.identity)) continue;
    throw Error(Outcome::Usage,
                fmt::format("{}{}: is a layer of the chain that is restored", o.destination, suffix));
  }
  const bool as_layer = o.format == ImageFormat::Qcow2;
  if (as_layer && (is_export || destination.is_device)) {
    throw Error(Outcome::Usage, fmt::format("{}: --format qcow2 is for files", o.destination));
  }
  Job job{o, *chain, console, prepare_proof(o, *chain), 0, {}, {}, {}};
  const auto write = as_layer                ? to_layer
                     : is_export             ? to_export
                     : destination.is_device ? to_device
                                             : to_file;
  write(job);
  return report(job, write == to_file);
}

}  // namespace qchain
