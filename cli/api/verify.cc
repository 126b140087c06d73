#include "cli/api/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include "cli/api/active_run.h"
#include "cli/api/nbd_access.h"
#include "cli/api/point_check.h"
#include "cli/api/text.h"
#include "extent/cancellation.h"
#include "extent/nbd_export.h"
#include "verify/chain_proof.h"
#include "verify/check.h"
#include "verify/compare.h"

namespace qchain {

namespace {

using Deadline = std::optional<std::chrono::steady_clock::time_point>;

MetadataSummary summary_of(const LayerCheck& layer) {
  const FindingList& findings = layer.findings;
  return {layer.outcome(false), findings.count(Severity::DataLoss), findings.count(Severity::Harmless),
          findings.count(Severity::Leak)};
}

ManifestStatus status_of(const ManifestVerdict& verdict) {
  ManifestStatus status;
  status.exists = verdict.exists;
  status.is_readable = verdict.summary.has_value();
  status.outcome = verdict.outcome;
  status.problems = verdict.problems;
  status.trusted_key = verdict.trusted_key;
  if (!verdict.summary) return status;
  const ManifestHeader& header = verdict.summary->header;
  status.algorithm = to_string(header.algorithm);
  status.is_cryptographic = is_cryptographic(header.algorithm);
  status.root = text_of(verdict.summary->disk_digest());
  status.root_follows = verdict.root_follows;
  status.own_digest = verdict.summary->own_digest.hex();
  status.accepted = text_of(header.accepted);
  status.is_signed = verdict.summary->signature.has_value();
  status.origin = to_string(header.origin);
  status.time = header.time;
  status.sealed_time = header.sealed_time;
  status.is_signed_unproven = header.is_signed_unproven;
  return status;
}

// Of one layer: what it holds was compared, the rest of the disk is inherited.
ContentStatus status_of(const Proof& proof, const ManifestSummary& manifest, const Selection& selection) {
  ContentStatus status;
  status.findings = proof;
  status.blocks = proof.blocks;
  status.zero_blocks = proof.zero_blocks;
  status.partial_blocks = proof.partial_blocks;
  status.unknown_bytes = proof.unknown_bytes;
  if (selection.is_everything() && !proof.stopped_at) {
    status.inherited_blocks = manifest.header.blocks() - proof.blocks;
  }
  status.stopped_at = proof.stopped_at;
  return status;
}

// Why it was sealed on another parent than the recorded one is not known; that it was, is said.
bool is_resolved(const LayerProof& layer) {
  const ManifestVerdict& manifest = layer.manifest;
  if (layer.same_content) return true;
  return manifest.belongs && !manifest.is_misplaced && manifest.summary->header.is_resealed;
}

bool has_usable_manifest(const LayerProof& layer) {
  const Outcome outcome = worse(layer.manifest.outcome, layer.failure.outcome);
  return outcome == Outcome::Done || outcome == Outcome::Incomplete;
}

// One call of verify().
class Verification {
 public:
  Verification(const VerifyRequest& request, const ActiveRun& run) : request_(request), run_(run) {
    if (request.max_duration) deadline_ = std::chrono::steady_clock::now() + *request.max_duration;
  }

  VerifyResult result() {
    std::vector<TrustedKey> trusted = trusted_keys(request_.trust_keys);
    Survey surveyed = survey(request_.image, ImageFormat::Qcow2, request_.open);
    check_metadata(surveyed);
    if (surveyed.is_whole()) {
      attempt([&] { prove(std::move(surveyed), std::move(trusted)); });
    }
    result_.outcome = result_.selected;
    if (!request_.selection.is_everything()) result_.outcome = worse(result_.outcome, Outcome::Incomplete);
    if (result_.outcome == Outcome::Done) record();
    return std::move(result_);
  }

 private:
  bool verifies_from_manifests() const { return request_.against.empty(); }

  void add(Outcome outcome, const std::string& message, Remedy remedy = Remedy::None) {
    result_.selected = worse(result_.selected, outcome);
    result_.verdicts.push_back({outcome, message, remedy});
  }

  // Does a stage of the work. What keeps it from its end is one more verdict, beside what was found.
  template <class Stage>
  void attempt(Stage&& stage) {
    try {
      stage();
    } catch (const Error& error) {
      if (is_cancelled(error) || error.outcome() == Outcome::Usage) throw;
      add(error.outcome(), error.what(), error.remedy());
    }
  }

  // That it cannot be recorded does not make the rest untrue.
  void record() {
    try {
      record_seen(*result_.point, request_.point);
    } catch (const Error& error) {
      if (is_cancelled(error)) throw;
      add(error.outcome() == Outcome::Usage ? Outcome::Io : error.outcome(), error.what());
      result_.outcome = result_.selected;
    }
  }

  void check_metadata(const Survey& surveyed) {
    const CheckReport report = check_chain(surveyed, Payloads::Doubtful);
    for (const Survey::Problem& problem : report.problems) {
      // Whether a link that does not match matters is found out below.
      if (surveyed.is_whole() && problem.kind == ProblemKind::Link) continue;
      add(problem.outcome, problem.message, problem.remedy);
    }
    for (const LayerCheck& layer : report.layers) {
      LayerStatus& status = result_.layers.emplace_back();
      status.file = layer.path;
      status.metadata = summary_of(layer);
      const std::vector<Finding>& kept = layer.findings.kept();
      if (status.metadata.outcome == Outcome::Mismatch) {
        const auto worst = std::ranges::max_element(kept, {}, &Finding::severity);
        add(Outcome::Mismatch, fmt::format("{}: metadata: {}{}; run 'qchain check' for details", layer.path,
                                           describe(*worst), kept.size() > 1 ? " and more" : ""));
      }
      for (const std::string& what : layer.unchecked) {
        add(Outcome::Incomplete, fmt::format("{}: {}", layer.path, what));
      }
    }
  }

  void prove(Survey surveyed, std::vector<TrustedKey> trusted) {
    const std::unique_ptr<Chain> chain = Chain::open(std::move(surveyed));
    RestorePoints points(*chain, std::move(trusted));
    result_.point = top_point(points);
    for (const Verdict& verdict : check_point(*result_.point, request_.point)) {
      add(verdict.outcome, fmt::format("{}: {}", request_.image, verdict.message));
    }
    ProofOptions options;
    options.workers = worker_count(request_.nbd, run_.workers(), Work::Read);
    options.selection = request_.selection;
    options.deadline = deadline_;
    options.progress = run_.progress("verify", chain->size());
    const std::vector<LayerProof> layers =
        verifies_from_manifests() ? prove_chain(points, options) : check_manifests(points);
    for (std::size_t i = 0; i < layers.size(); ++i) add_layer(i, *chain, layers[i]);
    add_links(*chain, layers);
    result_.root = result_.layers.front().manifest->root;
    if (verifies_from_manifests()) return;
    attempt([&] { prove_against(*chain, points, std::ranges::all_of(layers, has_usable_manifest)); });
  }

  void add_layer(std::size_t index, const Chain& chain, const LayerProof& layer) {
    LayerStatus& status = result_.layers[index];
    status.manifest = status_of(layer.manifest);
    status.same_content = text_of(layer.same_content);
    if (const std::optional<Identity> identity = chain.layers()[index].identity()) {
      status.layer_id = identity->id;
      status.checkpoint = identity->checkpoint;
    }
    // What manifests cannot tell, the live side does.
    if (verifies_from_manifests() || layer.manifest.outcome != Outcome::Incomplete) {
      for (const std::string& problem : layer.manifest.problems) add(layer.manifest.outcome, problem);
    }
    note_about(layer);
    if (layer.failure.outcome != Outcome::Done) add(layer.failure.outcome, layer.failure.message);
    if (!verifies_from_manifests()) return;
    if (layer.proof) {
      status.content = status_of(*layer.proof, *layer.manifest.summary, request_.selection);
      add_proof(*layer.proof, layer.file);
    }
    if (layer.failure.outcome != Outcome::Done) return;
    if (!layer.manifest.exists) {
      add(Outcome::Incomplete, fmt::format("{}: no manifest: its content was not checked", layer.file));
    } else if (layer.manifest.summary && !layer.manifest.summary->root) {
      add(Outcome::Incomplete, fmt::format("{}: the digest of the whole disk is unknown", layer.file),
          Remedy::Seal);
    }
  }

  void note(const std::string& message, Remedy remedy = Remedy::None) {
    result_.notes.push_back({Outcome::Done, message, remedy});
  }

  void note_about(const LayerProof& layer) {
    if (layer.same_content) {
      note(fmt::format(
               "{}: the content has the recorded digest ({}), but another tool has rewritten the layer",
               layer.file, layer.same_content->text()),
           Remedy::SealAgain);
    }
    if (layer.manifest.summary && layer.manifest.summary->header.accepted) {
      note(fmt::format("{}: {}", layer.file, accepted_text(layer.manifest.summary->header.accepted->text())));
    }
  }

  // A link that does not match counts unless the content was proven without it, or somebody has sealed the
  // layer on the backing file that it has today.
  void add_links(const Chain& chain, const std::vector<LayerProof>& layers) {
    for (const Survey::Problem& problem : chain.link_problems()) {
      if (is_resolved(layers[problem.layer])) {
        note(problem.message);
      } else {
        add(problem.outcome, problem.message, problem.remedy);
      }
    }
  }

  void add_findings(const Findings& findings) {
    Findings& all = result_.findings;
    result_.lists_all = result_.lists_all && findings.lists_all();
    all.read_bytes += findings.read_bytes;
    all.different_bytes += findings.different_bytes;
    all.unread_bytes += findings.unread_bytes;
    all.unread_outcome = worse(all.unread_outcome, findings.unread_outcome);
    all.different.insert(all.different.end(), findings.different.begin(), findings.different.end());
    all.unread.insert(all.unread.end(), findings.unread.begin(), findings.unread.end());
  }

  // `read_from`: what was read, for messages.
  void add_proof(const Proof& proof, const std::string& read_from) {
    add_findings(proof);
    result_.asserted_bytes += proof.zero_blocks * kDigestBlock;
    if (proof.different_bytes != 0) {
      add(Outcome::Mismatch,
          fmt::format("{}: {} do not match the manifest, first at guest {}", read_from,
                      human_size(proof.different_bytes), to_string(proof.different.front().range)));
    }
    for (const UnreadRange& unread : proof.unread) {
      add(unread.outcome,
          fmt::format("{}: guest {}: {}", read_from, to_string(unread.range), unread.message));
    }
    if (proof.unknown_bytes != 0) {
      add(Outcome::Incomplete,
          fmt::format("{}: {} are not covered by a manifest", read_from, human_size(proof.unknown_bytes)));
    }
    if (proof.stopped_at) {
      add(Outcome::Incomplete,
          fmt::format("{}: stopped at guest offset {:#x}: time limit reached", read_from, *proof.stopped_at));
    }
  }

  // `use_manifests`: what they say of the chain can be relied on.
  void prove_against(Chain& chain, RestorePoints& points, bool use_manifests) {
    NbdExport live(nbd_target(request_.nbd, request_.against), {});
    OpaqueDevice opaque(live);
    BlockDevice& source = request_.no_extents ? static_cast<BlockDevice&>(opaque) : live;
    const std::unique_ptr<ChainDigests> stored = use_manifests ? points.digests(0) : nullptr;
    const unsigned workers = worker_count(request_.nbd, run_.workers(), live, Work::Read);
    const auto progress = run_.progress("verify", std::max(chain.size(), live.size()));
    if (request_.manifest_only && !stored) {
      return add(Outcome::Incomplete,
                 fmt::format("{}: no usable manifest to compare the export with", request_.image));
    }
    if (request_.manifest_only) {
      const Proof proof =
          prove_disk(source, chain, *stored, {workers, request_.selection, deadline_, progress});
      // What differs from a disk that is not the point in time any more says nothing.
      if (request_.owner != nullptr) request_.owner->require_running();
      add_live(chain, proof, live.size());
    } else {
      CompareOptions options;
      options.workers = workers;
      options.progress = progress;
      options.stored = stored.get();
      options.points = &points;
      if (stored) options.algorithm = stored->top().algorithm;
      options.selection = request_.selection;
      options.deadline = deadline_;
      const Comparison comparison = compare(chain, source, options);
      if (request_.owner != nullptr) request_.owner->require_running();
      add_live(chain, comparison, live.size());
    }
    if (stored) stored->finish();
    live.confirm();
  }

  bool is_of_another_length(const LiveStatus& live) const {
    return align_up(live.chain_bytes, kSectorSize) != align_up(live.live_bytes, kSectorSize);
  }

  // The live side compared with stored digests alone.
  void add_live(const Chain& chain, const Proof& proof, std::uint64_t live_bytes) {
    LiveStatus& live = result_.live.emplace();
    live.live_bytes = live_bytes;
    live.chain_bytes = chain.top().true_length();
    add_proof(proof, request_.against);
    if (is_of_another_length(live)) {
      add(Outcome::Mismatch, fmt::format("{}: has {} bytes, but the chain has {}", request_.against,
                                         live.live_bytes, live.chain_bytes));
    }
    add(Outcome::Incomplete, "the live export was compared only with the manifests; no layer was read");
  }

  void add_live(const Chain& chain, const Comparison& comparison, std::uint64_t live_bytes) {
    LiveStatus& live = result_.live.emplace();
    live.live_bytes = live_bytes;
    live.chain_bytes = chain.top().true_length();
    live.compared_bytes = comparison.compared_bytes;
    if (comparison.live) live.live_digest = comparison.live->hex();
    if (comparison.chain) live.chain_digest = comparison.chain->hex();
    add_findings(comparison);
    result_.asserted_bytes += comparison.compared_bytes - comparison.read_bytes;
    if (is_of_another_length(live)) {
      add(Outcome::Mismatch, fmt::format("{}: the chain has {} bytes, but the live export has {}",
                                         request_.image, live.chain_bytes, live.live_bytes));
    }
    for (std::size_t i = 0; i < kCauses; ++i) {
      if (comparison.bytes_of[i] != 0) add_cause(comparison, static_cast<Cause>(i), comparison.bytes_of[i]);
    }
    if (comparison.unread_outcome != Outcome::Done) {
      add(comparison.unread_outcome,
          fmt::format("{}: {} could not be compared", request_.image, human_size(comparison.unread_bytes)));
    }
    for (const UnreadRange& unread : comparison.unread) {
      add(unread.outcome, fmt::format("{}: not compared: {}", to_string(unread.range), unread.message));
    }
    if (comparison.stopped_at) {
      add(Outcome::Incomplete,
          fmt::format("stopped at guest offset {:#x}: time limit reached", *comparison.stopped_at));
    }
    // Equal disks have equal digests.
    if (result_.selected == Outcome::Done && comparison.live != comparison.chain) {
      add(Outcome::Mismatch,
          fmt::format("{}: no difference was found, but the digest of the disk is {}, and that "
                      "of the live export {}",
                      request_.image, live.chain_digest, live.live_digest));
    }
  }

  // All of one cause are one verdict, whether the list has them or not.
  void add_cause(const Comparison& comparison, Cause cause, std::uint64_t bytes) {
    const auto first = std::ranges::find(comparison.different, cause, &Discrepancy::cause);
    const std::string where =
        first == comparison.different.end() ? "" : ", first at guest " + to_string(first->range);
    add(cause == Cause::Moving ? Outcome::Inconclusive : Outcome::Mismatch,
        fmt::format("{}: {} differ from {} ({}){}", request_.image, human_size(bytes), request_.against,
                    to_string(cause), where));
  }

  const VerifyRequest& request_;
  const ActiveRun& run_;
  Deadline deadline_;
  VerifyResult result_;
};

void require_valid(const VerifyRequest& r) {
  const auto usage = [](const char* message) { throw Error(Outcome::Usage, message); };
  if (r.image.empty()) usage("missing image");
  require_valid(r.point);
  if (r.against.empty() && (r.manifest_only || r.no_extents || r.owner != nullptr)) {
    usage("manifest_only, no_extents and owner require a live export");
  }
  if (r.selection.part < 1 || r.selection.part > r.selection.parts ||
      r.selection.parts > Selection::kMaxParts) {
    usage("invalid selection");
  }
}

}  // namespace

VerifyResult verify(const VerifyRequest& request, const Run& how) {
  const ActiveRun run(how);
  require_valid(request);
  return Verification(request, run).result();
}

}  // namespace qchain
