#include "cli/pull.h"

#include <fmt/format.h>
#include <unistd.h>

#include <charconv>
#include <memory>

#include "cli/console_run.h"
#include "cli/api/text.h"

namespace qchain {

namespace po = boost::program_options;

namespace {

[[noreturn]] void usage(const std::string& message) { throw Error(Outcome::Usage, message); }

ByteRange parse_range(const std::string& text) {
  const std::size_t colon = text.find(':');
  if (colon == std::string::npos) usage(fmt::format("--range: \"{}\" is not OFFSET:LENGTH", escaped(text)));
  const std::uint64_t begin = parse_size(text.substr(0, colon), "--range");
  const std::uint64_t length = parse_size(text.substr(colon + 1), "--range");
  if (length > ~std::uint64_t{0} - begin) usage("--range: ends past 64 bits");
  return {begin, length};
}

CheckClean parse_check_clean(const std::string& text) {
  if (text == "all") return {CheckClean::Mode::All, 0};
  if (text == "none") return {CheckClean::Mode::None, 0};
  CheckClean check{CheckClean::Mode::Fraction, 0};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), check.fraction);
  if (error != std::errc() || end != text.data() + text.size() || !(check.fraction >= 0) ||
      check.fraction > 1) {
    usage(fmt::format("--check-clean: \"{}\" is neither a fraction from 0 to 1, nor all or none",
                      escaped(text)));
  }
  if (check.fraction == 0) check.mode = CheckClean::Mode::None;
  if (check.fraction == 1) check.mode = CheckClean::Mode::All;
  return check;
}

OnMissed parse_on_missed(const std::string& text) {
  if (text == "compare") return OnMissed::CompareAll;
  if (text == "fail") return OnMissed::Fail;
  usage(fmt::format("--on-missed: \"{}\" is neither compare nor fail", escaped(text)));
}

// A raw file has no parent, no clusters and no manifest.
void refuse_layer_options(const CommandLine& line) {
  for (const char* const option :
       {"parent", "checkpoint", "cluster-size", "layer-id", "extended-l2", "compress", "digest", "sign-key",
        "bitmap", "shallow", "since", "check-clean", "on-missed", "allow-other-export"}) {
    if (line.has(option)) usage(fmt::format("--{} has no meaning for a raw output", option));
  }
}

void require_valid(const PullOptions& o) {
  const bool raw = o.format == ImageFormat::Raw;
  if (o.request.output.empty()) usage("missing output file: use -o FILE");
  if (!raw && o.range) usage("--range is for a raw output: add --format raw");
  if (!raw && o.request.output == "-") usage("only a raw output can go to a pipe: add --format raw");
  if (o.request.output == "-" && o.common.json) usage("standard output cannot take the disk and --json both");
}

Json or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(escaped(text)); }

std::string point_in_words(const JobOwner* owner) {
  if (owner != nullptr) {
    return "the job was still running after the last read (" + escaped(owner->description()) + ")";
  }
  return "the end of the job was not excluded (--libvirt or --still-running does)";
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

// The owner's refusal, as the operator reads it.
template <class Pull>
auto or_say_that_nothing_is_published(const Pull& pull) {
  try {
    return pull();
  } catch (const Error& error) {
    if (error.outcome() != Outcome::Inconclusive) throw;
    throw error.with("; nothing is published");
  }
}

Outcome pull_layer(PullRequest request, Console& console) {
  const PullResult layer =
      or_say_that_nothing_is_published([&] { return pull(request, ConsoleRun(console)); });
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
  const RawPullResult copy =
      or_say_that_nothing_is_published([&] { return pull_raw(request, ConsoleRun(console)); });
  if (request.descriptor >= 0) return Outcome::Done;
  console.result_stands();
  console.print(fmt::format("{}: raw, {}, {} of data\n", escaped(request.output),
                            human_size(copy.range.length), human_size(copy.data_bytes)));
  console.document(Outcome::Done, json_of(request, copy));
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
  line.add()("check-clean", text()->value_name("HOW"),
             "compare what the bitmap calls clean with the parent: a FRACTION from 0 to 1, all or none "
             "(default: a sample)");
  line.add()(
      "on-missed", text()->value_name("WHAT"),
      "where the bitmap missed a change: compare (default: start over and compare everything) or fail (1)");
  line.add()("allow-other-export", "the parent may come from an export of another name");
  line.add()("require-read-only", "refuse an export that can be written to");
  line.add()("no-extents", "read every byte, whatever the server says of zeros");
  line.add()("force", "replace an output that exists");
  line.add_nbd();
  line.add_owner();
  if (!line.parse(words)) return std::nullopt;
  PullOptions o;
  o.common = line.common();
  o.request.nbd = line.nbd();
  o.owner = line.owner();
  o.request.uri = line.required("URI");
  o.request.output = line.text("output");
  o.request.parent = line.text("parent");
  o.request.open = o.common.open;
  o.request.parent_is_raw =
      image_format_named(line.text("parent-format", "qcow2"), "--parent-format") == ImageFormat::Raw;
  if (line.has("parent-format") && o.request.parent.empty()) usage("--parent-format needs --parent IMAGE");
  o.request.bitmap = line.text("bitmap");
  o.request.shallow = line.has("shallow");
  o.request.checkpoint = line.text("checkpoint");
  o.request.since = line.text("since");
  o.request.cluster_size = line.size("cluster-size").value_or(0);
  if (line.has("cluster-size") && o.request.cluster_size == 0)
    usage("--cluster-size: 0 is not from 4K to 2M");
  o.request.extended_l2 = line.has("extended-l2");
  o.request.compression = line.text("compress", "none");
  o.format = image_format_named(line.text("format", "qcow2"), "--format");
  if (line.has("range")) o.range = parse_range(line.text("range"));
  o.request.layer_id = line.text("layer-id");
  o.request.digest = line.text("digest");
  o.request.sign_key = line.text("sign-key");
  o.request.replace = line.has("force");
  if (line.has("check-clean")) o.request.check_clean = parse_check_clean(line.text("check-clean"));
  if (line.has("on-missed")) o.request.on_missed = parse_on_missed(line.text("on-missed"));
  o.request.allow_other_export = line.has("allow-other-export");
  o.request.require_read_only = line.has("require-read-only");
  o.request.no_extents = line.has("no-extents");
  if (o.format == ImageFormat::Raw) refuse_layer_options(line);
  require_valid(o);
  return o;
}

Outcome pull(const PullOptions& o, Console& console) {
  const std::unique_ptr<JobOwner> owner = open_owner(o.owner, {}, o.request.uri);
  if (o.format == ImageFormat::Raw) return pull_disk(o, owner.get(), console);
  PullRequest request = o.request;
  request.owner = owner.get();
  return pull_layer(std::move(request), console);
}

}  // namespace qchain
