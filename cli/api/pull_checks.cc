#include "cli/api/pull_checks.h"

#include <fmt/format.h>

#include <bit>

#include "cli/api/text.h"
#include "qcow2/compression.h"
#include "qcow2/format.h"
#include "qcow2/identity.h"
#include "qcow2/layer_writer.h"
#include "verify/digest.h"

namespace qchain {

namespace {

[[noreturn]] void usage(const std::string& message) { throw Error(Outcome::Usage, message); }

void require_valid_names(const PullRequest& r) {
  for (const std::string* const name : {&r.checkpoint, &r.since}) {
    if (escaped(*name) != *name)
      usage(fmt::format("checkpoint name \"{}\": not printable UTF-8", escaped(*name)));
  }
  if (!r.layer_id.empty() && !is_uuid(r.layer_id)) {
    usage(fmt::format("layer-id: \"{}\" is not a UUID", escaped(r.layer_id)));
  }
}

void require_valid_format(const PullRequest& r) {
  if (r.cluster_size != 0 &&
      (!std::has_single_bit(r.cluster_size) || r.cluster_size < std::uint64_t{1} << kMinWrittenClusterBits ||
       r.cluster_size > std::uint64_t{1} << kMaxClusterBits)) {
    usage(fmt::format("cluster-size: {} is not a power of two from 4K to 2M", r.cluster_size));
  }
  parse_compression(r.compression);
  const bool no_manifest = r.digest == "none";
  if (no_manifest && !r.sign_key.empty()) usage("a signing key was given, but no manifest is to be written");
  if (no_manifest || r.digest.empty()) return;
  const Algorithm algorithm = algorithm_named(r.digest);
  if (!is_cryptographic(algorithm) && !r.sign_key.empty()) {
    usage(fmt::format("a signature over {} digests proves nothing; choose sha256", to_string(algorithm)));
  }
}

void require_valid_keys(const PullRequest& r) {
  const bool says_whom = !r.trust_keys.empty() || r.sign_unproven;
  if (!says_whom) return;
  if (r.sign_key.empty() || r.parent.empty()) {
    usage("trusted keys, and signing unproven layers: only for a signed increment");
  }
  if (r.sign_unproven && !r.trust_keys.empty()) {
    usage("trusted keys are of no use where unproven layers are signed all the same");
  }
}

// Rejects options that need a parent if there is none.
void require_parent_where_needed(const PullRequest& r) {
  if (!r.parent.empty()) return;
  const auto needs_parent = [](bool given, const char* what) {
    if (given) usage(fmt::format("{}: only for an increment; give its parent", what));
  };
  needs_parent(!r.bitmap.empty(), "bitmap");
  needs_parent(r.shallow, "shallow");
  needs_parent(!r.since.empty(), "since");
  needs_parent(r.parent_is_raw, "parent-format");
  needs_parent(r.check_clean.mode != CheckClean::Mode::Sample, "check-clean");
  needs_parent(r.on_missed != OnMissed::CompareAll, "on-missed");
  needs_parent(r.allow_other_export, "allow-other-export");
}

}  // namespace

void require_valid(const PullRequest& r) {
  if (r.output.empty()) usage("missing output file");
  require_valid_names(r);
  require_valid_format(r);
  require_valid_keys(r);
  require_parent_where_needed(r);
  if (r.shallow && !r.bitmap.empty()) usage("shallow and bitmap are mutually exclusive");
}

void require_since(const PullRequest& r, const Layer& parent, const ActiveRun& run) {
  const std::optional<Identity> identity = parent.identity();
  const std::string at = identity ? identity->checkpoint : std::string();
  if (at.empty()) {
    run.note(fmt::format("{}: the parent records no checkpoint; cannot check where the bitmap starts",
                         parent.path()));
    return;
  }
  if (r.since.empty()) {
    throw Error(Outcome::Usage,
                fmt::format("{}: the parent is at checkpoint {}; confirm that the bitmap starts there",
                            parent.path(), at),
                Remedy::NameParentPoint);
  }
  if (r.since != at) {
    throw Error(Outcome::Mismatch,
                fmt::format("{}: is at checkpoint {}, but the bitmap starts at {}: changes in between "
                            "would be lost; use the parent at {}",
                            parent.path(), at, r.since, r.since));
  }
}

void check_writable(const NbdExport& live, bool require_read_only, const ActiveRun& run) {
  if (live.is_read_only()) return;
  if (require_read_only)
    throw Error(Outcome::Usage,
                fmt::format("{}: the export is writable, but a read-only one is required", live.name()),
                Remedy::AllowWritable);
  run.warn(fmt::format(
      "{}: the export is writable: if it is written to during the pull, the copy is not a consistent "
      "point in time; pull from a backup job or a read-only export",
      live.name()));
}

void require_same_source(const PullRequest& r, const NbdExport& live, const Layer& parent) {
  const std::optional<Identity> identity = parent.identity();
  if (!identity || r.allow_other_export) return;
  const auto compare = [&](const char* what, const std::string& recorded, const std::string& here) {
    if (recorded.empty() || here.empty() || recorded == here) return;
    throw Error(Outcome::Mismatch,
                fmt::format("{}: the parent {} was pulled from {} \"{}\", not \"{}\": this may be "
                            "another disk",
                            live.name(), parent.path(), what, recorded, here),
                Remedy::AllowOtherExport);
  };
  compare("export", identity->export_name, live.export_name());
  const OwnedDisk* const disk = r.owner != nullptr ? r.owner->disk() : nullptr;
  if (disk == nullptr) return;
  compare("libvirt domain", identity->domain, disk->domain_uuid);
  compare("disk", identity->target, disk->target);
}

void require_signed_parent(RestorePoints& points) {
  for (std::size_t i = 0; i < points.chain().layers().size(); ++i) {
    const ManifestVerdict& verdict = points.verdict(i);
    if (!verdict.trusted_key.empty()) continue;
    throw Error(Outcome::BadManifest,
                fmt::format("{}; a signature of the new layer would vouch for it",
                            verdict.problems.empty() ? points.chain().layers()[i].path() + ": is not signed"
                                                     : verdict.problems.front()),
                Remedy::TrustOrSignUnproven);
  }
}

void note_about(const NbdExport& live, bool is_full, const ActiveRun& run) {
  if (is_full && !live.offered_bitmaps().empty()) {
    run.note(fmt::format("full image: ignoring the dirty bitmap {} of the export",
                         live.offered_bitmaps().front()));
  }
  if (!live.has_allocation())
    run.note("the server does not report zeros (base:allocation): reading every byte");
}

}  // namespace qchain
