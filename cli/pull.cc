#include "cli/pull.h"

#include <fmt/format.h>
#include <unistd.h>

#include <charconv>
#include <memory>

#include "cli/command_line.h"
#include "cli/console_run.h"
#include "cli/api/text.h"
#include "qcow2/compression.h"
#include "verify/digest.h"

namespace qchain {

namespace {

[[noreturn]] void usage(const std::string& message) { throw Error(Outcome::Usage, message); }

ByteRange parse_range(const std::string& text) {
  const std::size_t colon = text.find(':');
  if (colon == std::string::npos) usage(fmt::format("\"{}\" is not OFFSET:LENGTH", escaped(text)));
  const std::uint64_t begin = parse_size(text.substr(0, colon));
  const std::uint64_t length = parse_size(text.substr(colon + 1));
  if (length > ~std::uint64_t{0} - begin) usage(fmt::format("{}: the end exceeds 64 bits", escaped(text)));
  return {begin, length};
}

std::uint64_t parse_cluster_size(const std::string& text) {
  const std::uint64_t size = parse_size(text);
  if (size == 0) usage("0 is not a power of two from 4K to 2M");
  return size;
}

// Readers that only validate, so that the message names the option.
std::string known_compression(const std::string& text) {
  parse_compression(text);
  return text;
}

std::string known_digest(const std::string& text) {
  if (text != "none") algorithm_named(text);
  return text;
}

bool is_raw_named(const std::string& format) { return image_format_named(format) == ImageFormat::Raw; }

CheckClean parse_check_clean(const std::string& text) {
  if (text == "all") return {CheckClean::Mode::All, 0};
  if (text == "none") return {CheckClean::Mode::None, 0};
  CheckClean check{CheckClean::Mode::Fraction, 0};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), check.fraction);
  if (error != std::errc() || end != text.data() + text.size() || !(check.fraction >= 0) ||
      check.fraction > 1) {
    usage(fmt::format("\"{}\": invalid; give a fraction from 0 to 1, all or none", escaped(text)));
  }
  if (check.fraction == 0) check.mode = CheckClean::Mode::None;
  if (check.fraction == 1) check.mode = CheckClean::Mode::All;
  return check;
}

OnMissed parse_on_missed(const std::string& text) {
  if (text == "compare") return OnMissed::CompareAll;
  if (text == "fail") return OnMissed::Fail;
  usage(fmt::format("\"{}\": invalid; choose compare or fail", escaped(text)));
}

// Raw output has no parent, clusters or manifest.
void refuse_layer_options(const CommandLine& line) {
  for (const char* const option : {"parent", "checkpoint", "cluster-size", "layer-id", "extended-l2",
                                   "compress", "digest", "sign-key", "trust-key", "sign-unproven", "bitmap",
                                   "shallow", "since", "check-clean", "on-missed", "allow-other-export"}) {
    if (line.has(option)) usage(fmt::format("--{} cannot be used with raw output", option));
  }
}

void require_valid(const PullOptions& o) {
  const bool raw = o.format == ImageFormat::Raw;
  if (o.request.output.empty()) usage("missing output file: use -o FILE");
  if (!raw && o.range) usage("--range requires --format raw");
  if (!raw && o.request.output == "-")
    usage("only a raw image can be written to standard output: use --format raw");
  if (o.request.output == "-" && o.common.json)
    usage("-o - and --json are mutually exclusive: both write to standard output");
}

Json or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(escaped(text)); }

std::string point_in_words(const JobOwner* owner) {
  if (owner != nullptr) {
    return "the job was still running after the last read (" + escaped(owner->description()) + ")";
  }
  return "not checked whether the job was still running after the last read (use --libvirt or "
         "--still-running)";
}

std::string text_of(const PullResult& layer, const JobOwner* owner) {
  const std::string output = escaped(layer.output);
  std::string text = fmt::format(
      "{}: {} of {}, {} of data, {} of zeros, {} {}; {} on disk; layer {}\n", output,
      layer.is_increment ? "increment" : "full", human_size(layer.virtual_size), human_size(layer.data_bytes),
      human_size(layer.zero_bytes), human_size(layer.inherited_bytes),
      layer.is_increment ? "inherited" : "unallocated", human_size(layer.file_bytes), layer.layer_id);
  if (!layer.manifest.empty()) {
    text += fmt::format("{}: digest {}{}\n", output, layer.digest.empty() ? "unknown" : layer.digest,
                        layer.is_signed ? ", signed" : "");
  }
  return text + fmt::format("{}: point in time: {}\n", output, point_in_words(owner));
}

Json json_of(const PullRequest& request, const PullResult& layer) {
  Json fields;
  fields["output"] = escaped(layer.output);
  fields["kind"] = layer.is_increment ? "increment" : "full";
  fields["format"] = "qcow2";
  fields["parent"] = or_null(request.parent);
  fields["bitmap"] = or_null(layer.bitmap);
  fields["virtual_size"] = layer.virtual_size;
  fields["cluster_size"] = layer.cluster_size;
  fields["data_bytes"] = layer.data_bytes;
  fields["zero_bytes"] = layer.zero_bytes;
  fields["compressed_clusters"] = layer.compressed_clusters;
  fields["inherited_bytes"] = layer.inherited_bytes;
  fields["read_bytes"] = layer.read_bytes;
  fields["file_bytes"] = layer.file_bytes;
  fields["missed_by_bitmap_bytes"] = layer.missed_bytes;
  fields["clean_checked"] = or_null(layer.clean_checked);
  fields["digest"] = or_null(layer.digest);
  fields["parent_digest"] = or_null(layer.parent_digest);
  fields["manifest"] = or_null(layer.manifest);
  fields["signed"] = layer.is_signed;
  fields["layer_id"] = layer.layer_id;
  fields["parent_id"] = or_null(layer.parent_id);
  fields["checkpoint"] = or_null(request.checkpoint);
  fields["since"] = or_null(request.since);
  fields["source"] = layer.source;
  fields["export"] = or_null(layer.export_name);
  fields["point_in_time"] = layer.point_in_time;
  return fields;
}

// Runs a pull; adds to an Inconclusive error that nothing was published.
template <class Pull>
auto with_note_on_publication(const Pull& pull) {
  try {
    return pull();
  } catch (const Error& error) {
    if (error.outcome() != Outcome::Inconclusive) throw;
    throw error.with("; nothing was published");
  }
}

Outcome pull_layer(PullRequest request, Console& console) {
  const PullResult layer = with_note_on_publication([&] { return pull(request, ConsoleRun(console)); });
  console.result_stands();
  console.print(text_of(layer, request.owner));
  console.document(Outcome::Done, json_of(request, layer));
  return Outcome::Done;
}

Json json_of(const RawPullRequest& request, const RawPullResult& copy) {
  Json fields;
  fields["output"] = escaped(request.output);
  fields["format"] = "raw";
  fields["source"] = copy.source;
  fields["export"] = escaped(copy.export_name);
  fields["point_in_time"] = copy.point_in_time;
  fields["range"] = {{"offset", copy.range.offset}, {"length", copy.range.length}};
  fields["data_bytes"] = copy.data_bytes;
  fields["zero_bytes"] = copy.zero_bytes;
  return fields;
}

Outcome pull_disk(const PullOptions& o, JobOwner* owner, Console& console) {
  RawPullRequest request;
  request.uri = o.request.uri;
  request.nbd = o.request.nbd;
  request.owner = owner;
  request.output = o.request.output;
  request.replace = o.request.replace;
  if (request.output == "-") request.descriptor = STDOUT_FILENO;
  request.range = o.range;
  request.require_read_only = o.request.require_read_only;
  request.no_extents = o.request.no_extents;
  const RawPullResult copy = with_note_on_publication([&] { return pull_raw(request, ConsoleRun(console)); });
  if (request.descriptor >= 0) return Outcome::Done;
  console.result_stands();
  console.print(fmt::format("{}: raw, {}, {} of data\n", escaped(request.output),
                            human_size(copy.range.length), human_size(copy.data_bytes)));
  console.document(Outcome::Done, json_of(request, copy));
  return Outcome::Done;
}

void add_image_options(CommandLine& line, PullOptions& o) {
  line.value("output,o", "OUT", o.request.output, "image to write; - for standard output (raw only)");
  line.value("parent", "IMAGE", o.request.parent, "parent (backing) image of the new layer");
  line.value("parent-format", "FORMAT", o.request.parent_is_raw, is_raw_named,
             "format of the parent: qcow2 (default) or raw");
  line.value("format", "FORMAT", o.format, image_format_named, "output format: qcow2 (default) or raw");
  line.value("range", "OFFSET:LENGTH", o.range, parse_range, "copy only this part of the disk (raw only)");
  line.value("cluster-size", "SIZE", o.request.cluster_size, parse_cluster_size,
             "4K to 2M (default: that of the parent, or 64K)");
  line.flag("extended-l2", o.request.extended_l2,
            "use extended L2 entries: subclusters of 1/32 of a cluster");
  line.value("compress", "TYPE", o.request.compression, known_compression,
             "none (default), zlib or zstd; the last two can be followed by :LEVEL");
  line.value("layer-id", "UUID", o.request.layer_id, "UUID of the new layer (default: random)");
  line.flag("force", o.request.replace, "replace an existing output file");
}

void add_manifest_options(CommandLine& line, PullOptions& o) {
  line.value("checkpoint", "NAME", o.request.checkpoint,
             "checkpoint (point in time) to record for the new layer");
  line.value(
      "digest", "ALGORITHM", o.request.digest, known_digest,
      "digest algorithm of the manifest: sha256, sha512, blake2b512, xxh3-128, or none for no manifest "
      "(default: that of the parent, or sha256)");
  line.value("sign-key", "FILE", o.request.sign_key,
             "sign the manifest with this Ed25519 private key (PEM); the layers below have to be signed too");
  line.values("trust-key", "FILE", o.request.trust_keys,
              "with --sign-key: layers below may be signed by this Ed25519 public key (PEM; repeatable)");
  line.flag("sign-unproven", o.request.sign_unproven,
            "with --sign-key: sign even if layers below are not signed; the manifest records that");
}

void add_source_options(CommandLine& line, PullOptions& o) {
  line.group("Changes since the parent");
  line.value("bitmap", "NAME", o.request.bitmap,
             "dirty bitmap to use (default: the only one that the export offers)");
  line.flag("shallow", o.request.shallow,
            "copy what is allocated in the active layer (qemu:allocation-depth), and use no dirty bitmap");
  line.value("since", "NAME", o.request.since, "checkpoint at which the dirty bitmap starts");
  line.value("check-clean", "HOW", o.request.check_clean, parse_check_clean,
             "how much of what the bitmap marks as clean to compare with the parent: a fraction from 0 "
             "to 1, all or none (default: a sample)");
  line.value("on-missed", "WHAT", o.request.on_missed, parse_on_missed,
             "if the bitmap missed a change: compare (default: start over and compare everything) or "
             "fail (exit code 1)");
  line.flag("allow-other-export", o.request.allow_other_export,
            "accept a parent that was pulled from another export, libvirt domain or disk");
  line.group("Export");
  line.flag("require-read-only", o.request.require_read_only, "refuse a writable export");
  line.flag("no-extents", o.request.no_extents,
            "read every byte: do not rely on the block status (zeros, holes) that the server reports");
}

}  // namespace

CommandLine command_line_for(PullOptions& o) {
  CommandLine line("pull", "URI -o OUT [options]",
                   "Copies a live NBD export into the next layer of a backup chain: a full image, or, "
                   "with --parent, an overlay that holds what has changed since.");
  line.positional("URI", o.request.uri);
  add_image_options(line, o);
  add_manifest_options(line, o);
  add_source_options(line, o);
  add_nbd_options(line, o.request.nbd);
  add_owner_options(line, o.owner);
  add_common_options(line, o.common);
  line.afterwards([&o](const CommandLine& given) {
    if (given.has("parent-format") && o.request.parent.empty()) {
      usage("--parent-format requires --parent");
    }
    o.request.open = o.common.open;
    if (o.format == ImageFormat::Raw) refuse_layer_options(given);
    require_valid(o);
  });
  return line;
}

Outcome pull(const PullOptions& o, Console& console) {
  const std::unique_ptr<JobOwner> owner = open_owner(o.owner, {}, o.request.uri);
  if (o.format == ImageFormat::Raw) return pull_disk(o, owner.get(), console);
  PullRequest request = o.request;
  request.owner = owner.get();
  return pull_layer(std::move(request), console);
}

}  // namespace qchain
