#include "cli/pull.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <filesystem>
#include <memory>

#include "cli/new_layer.h"
#include "cli/open_chain.h"
#include "cli/text.h"
#include "extent/nbd_export.h"
#include "extent/publication.h"
#include "extent/raw_copy.h"
#include "qcow2/format.h"
#include "qcow2/increment.h"
#include "qcow2/layer_writer.h"
#include "verify/layer_manifest.h"

namespace qchain {

namespace fs = std::filesystem;
namespace po = boost::program_options;

namespace {

[[noreturn]] void usage(const std::string& message) { throw Error(Outcome::Usage, message); }

GuestRange parse_range(const std::string& text) {
  const std::size_t colon = text.find(':');
  if (colon == std::string::npos) usage(fmt::format("--range: \"{}\" is not OFFSET:LENGTH", escaped(text)));
  const std::uint64_t begin = parse_size(text.substr(0, colon), "--range");
  const std::uint64_t length = parse_size(text.substr(colon + 1), "--range");
  if (length > ~std::uint64_t{0} - begin) usage("--range: ends past 64 bits");
  return guest_range(begin, length);
}

// What no combination of other things can make right.
void judge(const PullOptions& o) {
  if (o.output.empty()) usage("where to? name the output with -o");
  const bool raw = o.format == ImageFormat::Raw;
  const auto raw_needs_none = [&](bool given, const char* option) {
    if (raw && given) usage(fmt::format("{} has no meaning for a raw output", option));
  };
  raw_needs_none(!o.parent.empty(), "--parent");
  raw_needs_none(!o.checkpoint.empty(), "--checkpoint");
  raw_needs_none(o.cluster_size.has_value(), "--cluster-size");
  raw_needs_none(!o.layer_id.empty(), "--layer-id");
  raw_needs_none(o.extended_l2, "--extended-l2");
  raw_needs_none(o.compression.has_value(), "--compress");
  raw_needs_none(o.algorithm.has_value() || !o.manifest, "--digest");
  raw_needs_none(!o.sign_key.empty(), "--sign-key");
  if (o.algorithm && !is_cryptographic(*o.algorithm) && !o.sign_key.empty()) {
    usage(fmt::format("--sign-key: a signature over {} digests proves nothing; choose sha256",
                      to_string(*o.algorithm)));
  }
  if (!o.manifest && !o.sign_key.empty()) usage("--sign-key signs a manifest, and --digest none makes none");
  if (!raw && o.range) usage("--range is for a raw output: add --format raw");
  if (!raw && o.output == "-") usage("only a raw output can go to a pipe: add --format raw");
  if (o.output == "-" && o.common.json) usage("standard output cannot take the disk and --json both");
  if (o.parent.empty()) {
    if (!o.bitmap.empty()) usage("--bitmap says what changed since a parent: name it with --parent");
    if (o.shallow) usage("--shallow needs the layer that it is to stand on: name it with --parent");
    if (!o.since.empty()) usage("--since is the checkpoint of a parent: name it with --parent");
  }
  if (o.shallow && !o.bitmap.empty()) usage("--shallow and --bitmap exclude each other");
  if (!o.layer_id.empty() && !is_uuid(o.layer_id)) {
    usage(fmt::format("--layer-id: \"{}\" is not a UUID", escaped(o.layer_id)));
  }
  if (o.cluster_size) {
    const std::uint64_t size = *o.cluster_size;
    if (!std::has_single_bit(size) || size < std::uint64_t{1} << kMinWrittenClusterBits ||
        size > std::uint64_t{1} << kMaxClusterBits) {
      usage(fmt::format("--cluster-size: {} is not a power of two from 4K to 2M", size));
    }
  }
}

Changes changes_for(const PullOptions& o) {
  if (o.parent.empty()) return {};
  if (o.shallow) return {Changes::Source::AllocationDepth, {}};
  return {Changes::Source::DirtyBitmap, o.bitmap};
}

void judge_since(const PullOptions& o, const Layer& parent, Console& console) {
  const std::optional<Identity> identity = parent.identity();
  const std::string at = identity ? identity->checkpoint : std::string();
  if (at.empty()) {
    console.note(
        fmt::format("{}: records no checkpoint, so that the changes count from there is taken "
                    "on trust",
                    parent.path()));
    return;
  }
  if (o.since.empty()) {
    usage(fmt::format("{} is at checkpoint {}: say that the bitmap counts from there with --since {}",
                      parent.path(), at, at));
  }
  if (o.since != at) {
    throw Error(Outcome::Mismatch,
                fmt::format("{} is at checkpoint {}, and the changes count from {}: what happened in "
                            "between would be lost; choose the parent at {}",
                            parent.path(), at, o.since, o.since));
  }
}

// Nothing that is written here may be a layer of the chain that is built on.
void protect_layers(const PullOptions& o, const Chain& parent) {
  const std::string manifest = manifest_path(o.output);
  for (const std::string& path : {o.output, o.output + ".partial", manifest, manifest + ".partial"}) {
    struct stat status {};
    if (stat(path.c_str(), &status) == 0 && parent.contains(FileIdentity{status.st_dev, status.st_ino})) {
      usage(fmt::format("{}: is a layer of the chain that is built on", path));
    }
  }
}

std::string canonical_directory_of(const std::string& path) {
  const fs::path directory = fs::path(path).parent_path();
  std::error_code error;
  fs::path canonical = fs::canonical(directory.empty() ? fs::path(".") : directory, error);
  if (error) throw system_error(fmt::format("{}: cannot be resolved", directory.string()), error.value());
  return canonical;
}

// The parent's name as the layer records it: relative to the layer's directory.
std::string backing_name_for(const std::string& output, const Layer& parent) {
  const fs::path directory = canonical_directory_of(output);
  // A link to a file may lead elsewhere tomorrow; the names of devices are links that stay.
  const fs::path target = parent.file().is_regular()
                              ? fs::canonical(parent.path())
                              : canonical_directory_of(parent.path()) / fs::path(parent.path()).filename();
  std::string name = target.lexically_relative(directory).string();
  if (has_protocol(name)) name = "./" + name;
  if (name.size() > kMaxBackingName) {
    usage(fmt::format("{}: the way to it from {} has {} bytes; {} are possible", parent.path(),
                      directory.string(), name.size(), kMaxBackingName));
  }
  // Whoever opens the layer has to arrive at this file and no other.
  struct stat status {};
  if (stat(backing_path(output, name).c_str(), &status) != 0 ||
      FileIdentity{status.st_dev, status.st_ino} != parent.file().identity()) {
    throw Error(Outcome::Io, fmt::format("{}: \"{}\" does not lead to it from {}", parent.path(), name,
                                         directory.string()));
  }
  return name;
}

void tell_where_parent_is(const std::string& backing_name, Console& console) {
  if (!backing_name.starts_with("../")) return;
  console.note(
      "the parent is outside the output's directory: those who read the chain have to allow it "
      "with --backing-root");
}

Identity identity_for(const PullOptions& o, const Chain* parent, std::uint64_t length) {
  Identity identity;
  identity.overlay = parent != nullptr;
  identity.id = o.layer_id.empty() ? random_uuid() : o.layer_id;
  if (parent != nullptr) {
    const std::optional<Identity> below = parent->top().identity();
    if (below) identity.parent_id = below->id;
  }
  identity.checkpoint = o.checkpoint;
  identity.since = o.since;
  identity.length = length;
  identity.time = recorded_time();
  identity.tool = "qchain " QCHAIN_VERSION;
  return identity;
}

unsigned cluster_bits_for(const PullOptions& o, const Chain* parent) {
  if (o.cluster_size) return static_cast<unsigned>(std::countr_zero(*o.cluster_size));
  if (parent == nullptr || parent->top().image() == nullptr) return kDefaultClusterBits;
  const unsigned bits = parent->top().image()->header().cluster_bits;
  return bits >= kMinWrittenClusterBits ? bits : kDefaultClusterBits;
}

void tell_about(const PullOptions& o, const NbdExport& live, Console& console) {
  if (o.parent.empty() && !live.offered_bitmaps().empty()) {
    console.note(
        fmt::format("a full image: the dirty bitmap {} on offer is ignored", live.offered_bitmaps().front()));
  }
  if (!live.has_allocation()) {
    console.note("the server does not tell zeros from data: every byte is read");
  }
}

void tell_about_misses(const Increment& increment, Console& console) {
  if (increment.missed_bytes() == 0) return;
  console.warn(
      fmt::format("the dirty bitmap says clean of {} bytes that are not what the parent holds, "
                  "the first at {}: they are in the layer; was the disk made smaller and "
                  "larger again?",
                  increment.missed_bytes(), to_string(increment.first_missed().front().range)));
}

// The manifest that is written together with the layer; nullptr where none is wanted. Records in `identity`
// what is known of the parent's digest.
std::unique_ptr<LayerManifest> begin_manifest(const PullOptions& o, const Chain* parent, Identity& identity,
                                              Console& console) {
  if (!o.manifest) return nullptr;
  ParentDigests beneath;
  if (parent != nullptr) beneath = parent_digests(*parent, 0);
  ManifestHeader header;
  header.algorithm = o.algorithm.value_or(beneath.algorithm.value_or(Algorithm::Sha256));
  if (beneath.digests && header.algorithm != *beneath.algorithm) {
    beneath.digests.reset();
    beneath.root.clear();
    beneath.unknown_because = fmt::format("the parent's digests are {}", to_string(*beneath.algorithm));
  }
  if (parent != nullptr && !beneath.digests) {
    console.warn(fmt::format("the digest of the whole disk will be unknown: {}", beneath.unknown_because));
  }
  if (!is_cryptographic(header.algorithm)) {
    console.note(fmt::format("{} finds accidents; it does not withstand somebody who forges",
                             to_string(header.algorithm)));
  }
  identity.parent_digest = beneath.root;
  header.length = identity.length;
  header.overlay = identity.overlay;
  header.layer_id = identity.id;
  header.parent_id = identity.parent_id;
  header.parent_root = beneath.root;
  header.checkpoint = identity.checkpoint;
  header.since = identity.since;
  return std::make_unique<LayerManifest>(
      o.output, header, parent != nullptr ? parent->top().true_length() : 0, std::move(beneath.digests));
}

Outcome pull_layer(const PullOptions& o, Console& console) {
  std::optional<SigningKey> key;
  if (!o.sign_key.empty()) key.emplace(o.sign_key);
  std::unique_ptr<Chain> parent;
  if (!o.parent.empty()) {
    parent = open_chain(o.parent, o.parent_format, o.common, console);
    judge_since(o, parent->top(), console);
    protect_layers(o, *parent);
  }
  std::string backing_name;
  if (parent) {
    backing_name = backing_name_for(o.output, parent->top());
    tell_where_parent_is(backing_name, console);
  }
  Publication publication(o.output, o.force ? Existing::Replace : Existing::Refuse);
  publication.bypass_cache();
  const std::unique_ptr<JobOwner> owner = open_owner(o.owner, {}, o.uri);
  NbdExport live(o.nbd.target(o.uri), changes_for(o));
  tell_about(o, live, console);

  std::optional<Increment> increment;
  if (parent) increment.emplace(live, *parent);
  if (increment && increment->was_resized()) {
    console.note(
        fmt::format("the disk has {} bytes and the parent {}: what the bitmap says after a resize is "
                    "not relied on, so all data is read and compared with the parent",
                    live.size(), parent->size()));
  }
  BlockDevice& source = increment ? static_cast<BlockDevice&>(*increment) : live;

  Identity identity = identity_for(o, parent.get(), source.size());
  LayerOptions layer;
  layer.position = parent ? Position::Overlay : Position::Bottom;
  layer.cluster_bits = cluster_bits_for(o, parent.get());
  layer.extended_l2 = o.extended_l2;
  layer.compression = o.compression;
  if (o.extended_l2 && layer.cluster_bits < kMinExtendedL2ClusterBits) {
    usage(fmt::format("--extended-l2 needs clusters of at least {} bytes; add --cluster-size 64K",
                      1U << kMinExtendedL2ClusterBits));
  }
  layer.workers = o.nbd.workers_for(live, Work::ReadAndWrite);
  const std::unique_ptr<LayerManifest> manifest = begin_manifest(o, parent.get(), identity, console);
  if (manifest) layer.observer = manifest->observer();
  Progress progress(console.progress_style(), "pull", source.size());
  layer.progress = progress.updater();

  WrittenLayer written = write_layer(source, publication.file(), layer);
  std::optional<Digest> root;
  if (manifest) root = manifest->finish(key ? &*key : nullptr);
  if (root) identity.digest = named(manifest->algorithm(), *root);
  written.header.identity = encode_identity(identity);
  if (parent) {
    written.header.backing_name = backing_name;
    written.header.backing_format = parent->top().format();
  }
  // Everything is durable before the header makes it an image, and the export is the same one after the
  // last byte was read.
  publication.sync();
  live.confirm();
  if (owner) owner->require_running();
  write_header(publication.file(), written.header);
  publish(publication, manifest.get());

  if (increment) tell_about_misses(*increment, console);
  const std::string kind = parent ? "increment" : "full";
  console.print(fmt::format(
      "{}: {} of {}, {} of data, {} of zeros, {} inherited; {} on disk; layer {}\n{}", escaped(o.output),
      kind, human_size(written.header.virtual_size), human_size(written.data_bytes),
      human_size(written.zero_bytes), human_size(written.inherited_bytes), human_size(written.file_bytes),
      identity.id,
      manifest ? fmt::format("{}: digest {}{}\n", escaped(o.output),
                             identity.digest.empty() ? "unknown" : identity.digest, key ? ", signed" : "")
               : ""));
  Json fields;
  fields["output"] = escaped(o.output);
  fields["kind"] = kind;
  fields["format"] = "qcow2";
  fields["parent"] = parent ? Json(escaped(o.parent)) : Json(nullptr);
  fields["bitmap"] = live.bitmap().empty() ? Json(nullptr) : Json(escaped(live.bitmap()));
  fields["virtual_size"] = written.header.virtual_size;
  fields["cluster_size"] = std::uint64_t{1} << written.header.cluster_bits;
  fields["data_bytes"] = written.data_bytes;
  fields["zero_bytes"] = written.zero_bytes;
  fields["compressed_clusters"] = written.compressed_clusters;
  fields["inherited_bytes"] = written.inherited_bytes;
  fields["read_bytes"] = written.read_bytes;
  fields["file_bytes"] = written.file_bytes;
  fields["missed_by_bitmap_bytes"] = increment ? increment->missed_bytes() : 0;
  fields["digest"] = identity.digest.empty() ? Json(nullptr) : Json(identity.digest);
  fields["parent_digest"] = identity.parent_digest.empty() ? Json(nullptr) : Json(identity.parent_digest);
  fields["manifest"] = manifest ? Json(escaped(manifest_path(o.output))) : Json(nullptr);
  fields["signed"] = key.has_value();
  fields["layer_id"] = identity.id;
  fields["parent_id"] = identity.parent_id.empty() ? Json(nullptr) : Json(identity.parent_id);
  fields["checkpoint"] = o.checkpoint.empty() ? Json(nullptr) : Json(o.checkpoint);
  fields["since"] = o.since.empty() ? Json(nullptr) : Json(o.since);
  fields["owner"] = owner ? Json(owner->description()) : Json(nullptr);
  console.document(Outcome::Done, fields);
  return Outcome::Done;
}

GuestRange range_of(const PullOptions& o, std::uint64_t size) {
  if (!o.range) return guest_range(0, size);
  if (o.range->end > GuestOffset(size)) {
    usage(fmt::format("--range: {} ends past the disk, which has {} bytes", to_string(*o.range), size));
  }
  return *o.range;
}

Outcome pull_raw(const PullOptions& o, Console& console) {
  const bool to_pipe = o.output == "-";
  std::optional<Publication> publication;
  if (!to_pipe) publication.emplace(o.output, o.force ? Existing::Replace : Existing::Refuse).bypass_cache();
  const std::unique_ptr<JobOwner> owner = open_owner(o.owner, {}, o.uri);
  NbdExport live(o.nbd.target(o.uri), {});
  tell_about(o, live, console);
  const GuestRange range = range_of(o, live.size());
  Progress progress(console.progress_style(), "pull", range.length());
  CopyOptions copy;
  copy.workers = o.nbd.workers_for(live, Work::ReadAndWrite);
  copy.progress = progress.updater();
  if (to_pipe) {
    const File out(dup(STDOUT_FILENO), "standard output");
    try {
      copy_raw(live, range, out, TargetContent::Stream, copy);
      live.confirm();
      if (owner) owner->require_running();
    } catch (const Error& error) {
      throw Error(error.outcome(),
                  fmt::format("{}; what went to standard output is not complete", error.what()));
    }
    return Outcome::Done;
  }
  const CopyResult copied = copy_raw(live, range, publication->file(), TargetContent::Zeros, copy);
  publication->sync();
  live.confirm();
  if (owner) owner->require_running();
  publication->publish();
  unlink(manifest_path(o.output).c_str());  // of a file that was replaced
  console.print(fmt::format("{}: raw, {}, {} of data\n", escaped(o.output), human_size(range.length()),
                            human_size(copied.data_bytes)));
  Json fields;
  fields["output"] = escaped(o.output);
  fields["format"] = "raw";
  fields["range"] = {{"offset", range.begin.bytes()}, {"length", range.length()}};
  fields["data_bytes"] = copied.data_bytes;
  fields["zero_bytes"] = copied.zero_bytes;
  console.document(Outcome::Done, fields);
  return Outcome::Done;
}

}  // namespace

std::optional<PullOptions> parse_pull(const std::vector<std::string>& words) {
  CommandLine line("pull", "URI -o OUT [options]",
                   "Copies a live NBD export into the next layer of a chain: a full image, or, with "
                   "--parent,\nan overlay that holds what changed.");
  line.add_positional("URI");
  const auto text = [] { return po::value<std::string>(); };
  line.add()("output,o", text()->value_name("OUT"), "the image to write; -: standard output (raw only)");
  line.add()("parent", text()->value_name("IMAGE"), "the layer that the new one stands on");
  line.add()("parent-format", text()->value_name("FORMAT"), "qcow2 (default) or raw");
  line.add()("bitmap", text()->value_name("NAME"), "the dirty bitmap, where several are on offer");
  line.add()("shallow", "what the active layer holds, instead of a bitmap");
  line.add()("checkpoint", text()->value_name("NAME"), "record the point in time that this layer is");
  line.add()("since", text()->value_name("NAME"), "the checkpoint that the changes count from");
  line.add()("cluster-size", text()->value_name("SIZE"), "4K to 2M (default: the parent's, else 64K)");
  line.add()("extended-l2", "subclusters: what is stored is 1/32 of a cluster at least");
  line.add()("compress", text()->value_name("TYPE"), "none (default), zlib or zstd, with :LEVEL if need be");
  line.add()("format", text()->value_name("FORMAT"), "qcow2 (default) or raw");
  line.add()("range", text()->value_name("OFFSET:LENGTH"), "a part of the disk, as raw");
  line.add()("layer-id", text()->value_name("UUID"), "the layer's identity (default: random)");
  line.add()("digest", text()->value_name("ALGORITHM"),
             "of the manifest: sha256 (default), sha512, blake2b512, xxh3-128 or none");
  line.add()("sign-key", text()->value_name("FILE"), "sign the manifest with this Ed25519 key (PEM)");
  line.add()("force", "replace an output that exists");
  line.add_nbd();
  line.add_owner();
  if (!line.parse(words)) return std::nullopt;
  PullOptions o;
  o.common = line.common();
  o.nbd = line.nbd();
  o.owner = line.owner();
  o.uri = line.required("URI");
  o.output = line.text("output");
  o.parent = line.text("parent");
  if (line.has("parent-format") && o.parent.empty()) {
    usage("--parent-format says what the parent is: name it with --parent");
  }
  o.parent_format = image_format_named(line.text("parent-format", "qcow2"), "--parent-format");
  o.bitmap = line.text("bitmap");
  o.shallow = line.has("shallow");
  o.checkpoint = line.text("checkpoint");
  o.since = line.text("since");
  o.cluster_size = line.size("cluster-size");
  o.extended_l2 = line.has("extended-l2");
  o.compression = parse_compression(line.text("compress", "none"));
  o.format = image_format_named(line.text("format", "qcow2"), "--format");
  if (line.has("range")) o.range = parse_range(line.text("range"));
  o.layer_id = line.text("layer-id");
  o.manifest = line.text("digest") != "none";
  if (o.manifest && line.has("digest")) o.algorithm = algorithm_named(line.text("digest"));
  o.sign_key = line.text("sign-key");
  o.force = line.has("force");
  judge(o);
  return o;
}

Outcome pull(const PullOptions& options, Console& console) {
  return options.format == ImageFormat::Raw ? pull_raw(options, console) : pull_layer(options, console);
}

}  // namespace qchain
