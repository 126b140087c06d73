#include "cli/pull.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <memory>

#include "cli/command_line.h"
#include "cli/new_layer.h"
#include "cli/open_chain.h"
#include "cli/text.h"
#include "extent/nbd_export.h"
#include "cli/raw_output.h"
#include "extent/raw_copy.h"
#include "qcow2/format.h"
#include "qcow2/increment.h"
#include "verify/drill.h"
#include "verify/layer_build.h"
#include "verify/parent_check.h"

namespace qchain {

namespace {

[[noreturn]] void usage(const std::string& message) { throw Error(Outcome::Usage, message); }

GuestRange parse_range(const std::string& text) {
  const std::size_t colon = text.find(':');
  if (colon == std::string::npos) usage(fmt::format("\"{}\" is not OFFSET:LENGTH", escaped(text)));
  const std::uint64_t begin = parse_size(text.substr(0, colon));
  const std::uint64_t length = parse_size(text.substr(colon + 1));
  if (length > ~std::uint64_t{0} - begin)
    usage(fmt::format("{}: the end does not fit 64 bits", escaped(text)));
  return guest_range(begin, length);
}

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

// What no combination of other things can make right.
void judge(const PullOptions& o) {
  if (o.output.empty()) usage("missing output file: use -o FILE");
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
  if (!o.manifest && !o.sign_key.empty())
    usage("--sign-key signs the manifest, and --digest none writes no manifest: choose one");
  for (const std::string* const name : {&o.checkpoint, &o.since}) {
    if (escaped(*name) != *name)
      usage(fmt::format("\"{}\": a checkpoint's name is printable UTF-8", escaped(*name)));
  }
  if (!raw && o.range) usage("--range is for a raw output: add --format raw");
  if (!raw && o.output == "-") usage("only a raw image can be written to standard output: add --format raw");
  if (o.output == "-" && o.common.json) usage("-o - and --json both write to standard output: choose one");
  if (o.parent.empty()) {
    if (!o.bitmap.empty()) usage("--bitmap needs a parent (backing) image: name it with --parent");
    if (o.shallow) usage("--shallow needs a parent (backing) image: name it with --parent");
    if (!o.since.empty())
      usage("--since is the checkpoint of the parent (backing) image: name it with --parent");
    if (o.check_clean.mode != CheckClean::Mode::Sample || o.on_missed != OnMissed::CompareAll ||
        o.allow_other_export) {
      usage(
          "--check-clean, --on-missed and --allow-other-export are for increments: name the parent with "
          "--parent");
    }
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
    console.note(fmt::format("{}: the parent records no checkpoint; cannot check where the bitmap starts",
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

void tell_where_parent_is(const std::string& backing_name, Console& console) {
  if (!backing_name.starts_with("../")) return;
  console.note(
      "the parent is outside the output's directory: those who read the chain have to allow it "
      "with --backing-root");
}

// Where the new layer comes from: the parent has to come from there too.
void judge_source(const PullOptions& o, const NbdExport& live, const OwnedDisk* disk, const Chain* parent,
                  Console& console) {
  if (!live.is_read_only()) {
    if (o.require_read_only)
      usage(fmt::format("{}: the export is writable, and --require-read-only was given", o.uri));
    console.warn(fmt::format(
        "{}: the export is writable: what is written to it during the pull gives a disk of no one "
        "point in time; pull from a backup job or a read-only export",
        o.uri));
  }
  const std::optional<Identity> below = parent != nullptr ? parent->top().identity() : std::nullopt;
  if (!below || o.allow_other_export) return;
  const auto compare = [&](const char* what, const std::string& recorded, const std::string& here) {
    if (recorded.empty() || here.empty() || recorded == here) return;
    throw Error(
        Outcome::Mismatch,
        fmt::format(
            "{}: the parent {} was pulled from {} \"{}\", and this is \"{}\": if it is the same disk all the "
            "same, add --allow-other-export",
            o.uri, parent->top().path(), what, recorded, here));
  };
  compare("export", below->export_name, live.export_name());
  if (disk == nullptr) return;
  compare("libvirt domain", below->domain, disk->domain_uuid);
  compare("disk", below->target, disk->target);
}

constexpr std::size_t kMaxRecordedName = 128;  // the identity has room for 1 KiB in all

Identity identity_for(const PullOptions& o, const NbdExport& live, const JobOwner* owner) {
  Identity identity;
  identity.id = o.layer_id.empty() ? random_uuid() : o.layer_id;
  identity.checkpoint = o.checkpoint;
  identity.since = o.since;
  identity.length = live.size();
  identity.time = recorded_time();
  identity.tool = "qchain " QCHAIN_VERSION;
  if (live.export_name().size() <= kMaxRecordedName) identity.export_name = live.export_name();
  const OwnedDisk* const disk = owner != nullptr ? owner->disk() : nullptr;
  if (disk != nullptr) {
    identity.domain = disk->domain_uuid;
    identity.target = disk->target;
  }
  identity.point = owner != nullptr ? owner->description() : "end of the job not excluded";
  identity.source = live.is_read_only() ? "read-only export" : "writable export";
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
  console.warn(fmt::format(
      "the dirty bitmap says clean of {} bytes that are not what the parent holds, the first at {}: they are "
      "in the layer; was the disk made smaller and larger again, or written to while the bitmap was off?",
      increment.missed_bytes(), to_string(increment.first_missed().front().range)));
}

// The sample is drawn by the layer's id, so that the same layer is checked in the same way again.
std::uint64_t seed_for(const std::string& layer_id) {
  std::uint64_t hash = 0xCBF29CE484222325;  // FNV-1a
  for (const char c : layer_id) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3;
  return hash;
}

IncrementOptions increment_options(const PullOptions& o, const Identity& identity) {
  IncrementOptions options;
  options.seed = seed_for(identity.id);
  options.trust_zeros = !o.no_extents;
  options.sample = o.check_clean.mode == CheckClean::Mode::Sample;
  if (o.check_clean.mode == CheckClean::Mode::All) options.trust = Trust::Nothing;
  if (o.check_clean.mode == CheckClean::Mode::Fraction) options.fraction = o.check_clean.fraction;
  return options;
}

// A pull of a layer: what it is made from, and what has come of it.
struct LayerPull {
  const PullOptions& o;
  Console& console;
  std::unique_ptr<Chain> parent;
  std::unique_ptr<JobOwner> owner;
  std::optional<NbdExport> live;
  std::optional<LayerBuild> build;
  std::optional<Increment> increment;  // of the last attempt
  WrittenLayer written;
  std::string checked;  // what of the clean ranges was compared
};

// What keeps a bitmap from being trusted from the beginning.
void doubt_bitmap(LayerPull& pull, IncrementOptions& options) {
  const auto compare_all = [&](const std::string& why) {
    options.trust = Trust::Nothing;
    pull.console.note(why + ": all data is read and compared with the parent");
  };
  if (Increment::is_resized(pull.live->size(), *pull.parent)) {
    compare_all(
        fmt::format("the disk has {} bytes and the parent {}, and what the bitmap says after a resize is not "
                    "relied on",
                    pull.live->size(), pull.parent->size()));
  }
  const ParentState state = check_parent(*pull.parent, pull.o.nbd.workers(Work::Read),
                                         [&](const std::string& message) { pull.console.note(message); });
  if (state == ParentState::Unproven) compare_all("what the parent holds is not known from a manifest");
}

std::string what_was_checked(const LayerPull& pull, const IncrementOptions& options) {
  if (options.trust == Trust::Nothing) return "all";
  if (options.fraction > 0) return fmt::format("fraction {}, seed {:016x}", options.fraction, options.seed);
  if (!options.sample) return "none";
  return fmt::format("sample of {} blocks, seed {:016x}", pull.increment->sampled_blocks(), options.seed);
}

void write_increment(LayerPull& pull, const IncrementOptions& options, LayerOptions& layer) {
  Increment& increment = pull.increment.emplace(*pull.live, *pull.parent, options);
  layer.increment = &increment;
  pull.written = pull.build->write(increment);
  if (options.sample && options.trust == Trust::Bitmap) increment.check_sample(pull.written.read_bytes);
  increment.require_same_disk();
  pull.checked = what_was_checked(pull, options);
}

// A bitmap that is caught missing one change may have missed any.
void write_over_parent(LayerPull& pull, IncrementOptions options) {
  doubt_bitmap(pull, options);
  LayerOptions& layer = pull.build->layer();
  try {
    write_increment(pull, options, layer);
  } catch (const BitmapContradiction& contradiction) {
    require_sound_parent(*pull.parent, pull.increment->first_missed());
    if (pull.o.on_missed == OnMissed::Fail) {
      throw Error(Outcome::Mismatch,
                  fmt::format("{}; nothing was published, as --on-missed fail asks", contradiction.what()));
    }
    pull.console.warn(
        fmt::format("{}: starting over, with everything read and compared", contradiction.what()));
    options.trust = Trust::Nothing;
    write_increment(pull, options, layer);
  }
  require_sound_parent(*pull.parent, pull.increment->first_missed());
  if (pull.o.on_missed == OnMissed::Fail && pull.increment->missed_bytes() != 0 &&
      !Increment::is_resized(pull.live->size(), *pull.parent)) {
    throw Error(
        Outcome::Mismatch,
        fmt::format(
            "{}: the dirty bitmap missed {} bytes, the first at {}; nothing was published, as --on-missed "
            "fail asks",
            pull.o.uri, pull.increment->missed_bytes(),
            to_string(pull.increment->first_missed().front().range)));
  }
  tell_about_misses(*pull.increment, pull.console);
}

LayerRecipe recipe_for(const PullOptions& o, LayerPull& pull, const SigningKey* key, Console& console) {
  LayerRecipe recipe;
  recipe.output = o.output;
  recipe.existing = o.force ? Existing::Replace : Existing::Refuse;
  recipe.parent = pull.parent.get();
  recipe.identity = identity_for(o, *pull.live, pull.owner.get());
  recipe.layer.cluster_bits = cluster_bits_for(o, pull.parent.get());
  recipe.layer.extended_l2 = o.extended_l2;
  recipe.layer.compression = o.compression;
  if (o.extended_l2 && recipe.layer.cluster_bits < kMinExtendedL2ClusterBits) {
    usage(fmt::format("--extended-l2 needs clusters of at least {} bytes; add --cluster-size 64K",
                      1U << kMinExtendedL2ClusterBits));
  }
  recipe.layer.workers = o.nbd.workers_for(*pull.live, Work::ReadAndWrite);
  recipe.manifest = o.manifest;
  recipe.algorithm = o.algorithm;
  recipe.key = key;
  recipe.warn = [&console](const std::string& message) { console.warn(message); };
  return recipe;
}

std::string point_in_words(const LayerPull& pull) {
  if (pull.owner)
    return "the job was still running after the last read (" + escaped(pull.owner->description()) + ")";
  return "the end of the job was not excluded (--libvirt or --still-running does)";
}

void report(const LayerPull& pull, bool is_signed) {
  const PullOptions& o = pull.o;
  const WrittenLayer& written = pull.written;
  const Identity& identity = pull.build->identity();
  const std::string kind = pull.parent ? "increment" : "full";
  pull.console.print(fmt::format(
      "{}: {} of {}, {} of data, {} of zeros, {} {}; {} on disk; layer {}\n{}", escaped(o.output), kind,
      human_size(written.header.virtual_size), human_size(written.data_bytes), human_size(written.zero_bytes),
      human_size(written.inherited_bytes), pull.parent ? "inherited" : "unallocated",
      human_size(written.file_bytes), identity.id,
      o.manifest
          ? fmt::format("{}: digest {}{}\n", escaped(o.output),
                        identity.digest.empty() ? "unknown" : identity.digest, is_signed ? ", signed" : "")
          : ""));
  pull.console.print(fmt::format("{}: point in time: {}\n", escaped(o.output), point_in_words(pull)));
  const auto or_null = [](const std::string& text) {
    return text.empty() ? Json(nullptr) : Json(escaped(text));
  };
  Json fields;
  fields["output"] = escaped(o.output);
  fields["kind"] = kind;
  fields["format"] = "qcow2";
  fields["parent"] = or_null(o.parent);
  fields["bitmap"] = or_null(pull.live->bitmap());
  fields["virtual_size"] = written.header.virtual_size;
  fields["cluster_size"] = std::uint64_t{1} << written.header.cluster_bits;
  fields["data_bytes"] = written.data_bytes;
  fields["zero_bytes"] = written.zero_bytes;
  fields["compressed_clusters"] = written.compressed_clusters;
  fields["inherited_bytes"] = written.inherited_bytes;
  fields["read_bytes"] = written.read_bytes;
  fields["file_bytes"] = written.file_bytes;
  fields["missed_by_bitmap_bytes"] = pull.increment ? pull.increment->missed_bytes() : 0;
  fields["clean_checked"] = or_null(pull.checked);
  fields["digest"] = or_null(identity.digest);
  fields["parent_digest"] = or_null(identity.parent_digest);
  fields["manifest"] = o.manifest ? Json(escaped(manifest_path(o.output))) : Json(nullptr);
  fields["signed"] = is_signed;
  fields["layer_id"] = identity.id;
  fields["parent_id"] = or_null(identity.parent_id);
  fields["checkpoint"] = or_null(o.checkpoint);
  fields["since"] = or_null(o.since);
  fields["source"] = identity.source;
  fields["export"] = or_null(identity.export_name);
  fields["point_in_time"] = identity.point;
  pull.console.document(Outcome::Done, fields);
}

// Errors that came and went are the first sign of a disk, or a network, that fails.
void tell_about_recovery(const NbdExport& live, Console& console) {
  const Recovered recovered = live.recovered();
  if (recovered.failed_requests == 0 && recovered.reconnects == 0) return;
  console.warn(fmt::format(
      "{}: {} requests failed and were repeated, {} connections were lost and made again: all of it "
      "was read in the end; look at the server's storage",
      live.name(), recovered.failed_requests, recovered.reconnects));
}

void require_point_in_time(NbdExport& live, JobOwner* owner) {
  live.confirm();
  try {
    if (owner != nullptr) owner->require_running();
  } catch (const Error& error) {
    if (error.outcome() != Outcome::Inconclusive) throw;
    throw Error(error.outcome(), fmt::format("{}; nothing is published", error.what()));
  }
}

Outcome pull_layer(const PullOptions& o, Console& console) {
  std::optional<SigningKey> key;
  if (!o.sign_key.empty()) key.emplace(o.sign_key);
  LayerPull pull{o, console, {}, {}, {}, {}, {}, {}, {}};
  if (!o.parent.empty()) {
    pull.parent =
        open_chain(o.parent, o.parent_format, o.common, console, Links::Require, "--parent-format raw");
    judge_since(o, pull.parent->top(), console);
  }
  pull.owner = open_owner(o.owner, {}, o.uri);
  pull.live.emplace(o.nbd.target(o.uri), changes_for(o));
  NbdExport& live = *pull.live;
  judge_source(o, live, pull.owner ? pull.owner->disk() : nullptr, pull.parent.get(), console);
  tell_about(o, live, console);
  LayerBuild& build = pull.build.emplace(recipe_for(o, pull, key ? &*key : nullptr, console));
  tell_where_parent_is(build.backing_name(), console);
  if (!build.unknown_because().empty()) {
    console.warn(fmt::format("the digest of the whole disk will be unknown: {}", build.unknown_because()));
  }
  if (o.manifest && !is_cryptographic(build.algorithm())) {
    console.note(fmt::format("{} detects corruption, not tampering", to_string(build.algorithm())));
  }
  build.warn_if_short_of_space(live);
  Progress progress(console.progress_style(), "pull", live.size());
  build.layer().progress = progress.updater();
  if (pull.parent) {
    write_over_parent(pull, increment_options(o, build.identity()));
  } else {
    OpaqueDevice opaque(live);
    pull.written = build.write(o.no_extents ? static_cast<BlockDevice&>(opaque) : live);
  }
  tell_about_recovery(live, console);
  build.identity().checked = pull.checked;
  // Everything is durable before the header makes it an image, and the export is the same one after the last
  // byte was read.
  build.finish();
  require_point_in_time(live, pull.owner.get());
  build.commit();
  console.result_stands();
  report(pull, key.has_value());
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
  std::optional<RawOutput> output;
  if (!to_pipe) {
    output.emplace(o.output, o.force ? Existing::Replace : Existing::Refuse,
                   [&console](const std::string& message) { console.warn(message); });
  }
  const std::unique_ptr<JobOwner> owner = open_owner(o.owner, {}, o.uri);
  NbdExport export_(o.nbd.target(o.uri), {});
  judge_source(o, export_, nullptr, nullptr, console);
  tell_about(o, export_, console);
  OpaqueDevice opaque(export_);
  BlockDevice& live = o.no_extents ? static_cast<BlockDevice&>(opaque) : export_;
  const GuestRange range = range_of(o, live.size());
  Progress progress(console.progress_style(), "pull", range.length());
  CopyOptions copy;
  copy.workers = o.nbd.workers_for(export_, Work::ReadAndWrite);
  copy.progress = progress.updater();
  if (to_pipe) {
    const File out(dup(STDOUT_FILENO), "standard output");
    try {
      copy_raw(live, range, out, TargetContent::Stream, copy);
      require_point_in_time(export_, owner.get());
    } catch (const Error& error) {
      throw Error(error.outcome(),
                  fmt::format("{}; what went to standard output is not complete", error.what()));
    }
    return Outcome::Done;
  }
  output->warn_if_short_of_space(range.length(), extents_of(live, range));
  const CopyResult copied = copy_raw(live, range, output->file(), TargetContent::Zeros, copy);
  tell_about_recovery(export_, console);
  output->sync();
  require_point_in_time(export_, owner.get());
  output->publish();
  console.result_stands();
  console.print(fmt::format("{}: raw, {}, {} of data\n", escaped(o.output), human_size(range.length()),
                            human_size(copied.data_bytes)));
  Json fields;
  fields["output"] = escaped(o.output);
  fields["format"] = "raw";
  fields["source"] = export_.is_read_only() ? "read-only export" : "writable export";
  fields["export"] = escaped(export_.export_name());
  fields["point_in_time"] = owner ? owner->description() : "end of the job not excluded";
  fields["range"] = {{"offset", range.begin.bytes()}, {"length", range.length()}};
  fields["data_bytes"] = copied.data_bytes;
  fields["zero_bytes"] = copied.zero_bytes;
  console.document(Outcome::Done, fields);
  return Outcome::Done;
}

void add_image_options(CommandLine& line, PullOptions& o) {
  line.value("output,o", "OUT", o.output, "image to write; - for standard output (raw only)");
  line.value("parent", "IMAGE", o.parent, "parent (backing) image of the new layer");
  line.value("parent-format", "FORMAT", o.parent_format, image_format_named,
             "format of the parent: qcow2 (default) or raw");
  line.value("format", "FORMAT", o.format, image_format_named, "output format: qcow2 (default) or raw");
  line.value("range", "OFFSET:LENGTH", o.range, parse_range, "copy only this part of the disk (raw only)");
  line.value("cluster-size", "SIZE", o.cluster_size, parse_size,
             "4K to 2M (default: that of the parent, or 64K)");
  line.flag("extended-l2", o.extended_l2, "use extended L2 entries: subclusters of 1/32 of a cluster");
  line.value("compress", "TYPE", o.compression, parse_compression,
             "none (default), zlib or zstd; the last two can be followed by :LEVEL");
  line.value("layer-id", "UUID", o.layer_id, "UUID of the new layer (default: random)");
  line.flag("force", o.force, "replace an existing output file");
}

void add_manifest_options(CommandLine& line, PullOptions& o) {
  const auto read_digest = [&o](const std::string& text) -> std::optional<Algorithm> {
    o.manifest = text != "none";
    if (!o.manifest) return std::nullopt;
    return algorithm_named(text);
  };
  line.value("checkpoint", "NAME", o.checkpoint, "checkpoint (point in time) to record for the new layer");
  line.value(
      "digest", "ALGORITHM", o.algorithm, read_digest,
      "digest algorithm of the manifest: sha256, sha512, blake2b512, xxh3-128, or none for no manifest "
      "(default: that of the parent, or sha256)");
  line.value("sign-key", "FILE", o.sign_key, "sign the manifest with this Ed25519 private key (PEM)");
}

void add_source_options(CommandLine& line, PullOptions& o) {
  line.group("Changes since the parent");
  line.value("bitmap", "NAME", o.bitmap,
             "dirty bitmap to use (default: the only one that the export offers)");
  line.flag("shallow", o.shallow,
            "copy what is allocated in the active layer (qemu:allocation-depth), and use no dirty bitmap");
  line.value("since", "NAME", o.since, "checkpoint at which the dirty bitmap starts");
  line.value("check-clean", "HOW", o.check_clean, parse_check_clean,
             "how much of what the bitmap marks as clean to compare with the parent: a fraction from 0 to 1, "
             "all or none (default: a sample)");
  line.value("on-missed", "WHAT", o.on_missed, parse_on_missed,
             "if the bitmap missed a change: compare (default: start over and compare everything) or fail "
             "(exit code 1)");
  line.flag("allow-other-export", o.allow_other_export,
            "accept a parent that was pulled from another export, libvirt domain or disk");
  line.group("Export");
  line.flag("require-read-only", o.require_read_only, "refuse a writable export");
  line.flag("no-extents", o.no_extents,
            "read every byte: do not rely on the block status (zeros, holes) that the server reports");
}

}  // namespace

CommandLine command_line_for(PullOptions& o) {
  CommandLine line("pull", "URI -o OUT [options]",
                   "Copies a live NBD export into the next layer of a backup chain: a full image, or, with "
                   "--parent, an overlay that holds what has changed since.");
  line.positional("URI", o.uri);
  add_image_options(line, o);
  add_manifest_options(line, o);
  add_source_options(line, o);
  add_nbd_options(line, o.nbd);
  add_owner_options(line, o.owner);
  add_common_options(line, o.common);
  line.afterwards([&o](const CommandLine& given) {
    if (given.has("parent-format") && o.parent.empty()) {
      usage("--parent-format is the format of the parent: name that with --parent");
    }
    judge(o);
  });
  return line;
}

Outcome pull(const PullOptions& options, Console& console) {
  return options.format == ImageFormat::Raw ? pull_raw(options, console) : pull_layer(options, console);
}

}  // namespace qchain
