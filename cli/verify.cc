#include "cli/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <memory>

#include "cli/api/nbd_access.h"
#include "cli/api/open_chain.h"
#include "cli/combine.h"
#include "cli/console_run.h"
#include "cli/api/text.h"
#include "cli/verify_report.h"
#include "extent/nbd_export.h"
#include "verify/seal.h"

namespace qchain {

namespace po = boost::program_options;

namespace {

[[noreturn]] void usage(const std::string& message) { throw Error(Outcome::Usage, message); }

unsigned number(std::string_view text, const char* option) {
  unsigned value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    usage(fmt::format("{}: \"{}\" is not a number", option, escaped(std::string(text))));
  }
  return value;
}

void parse_sample(const std::string& text, Selection& selection) {
  constexpr unsigned kMaxParts = 1000000;
  const std::size_t slash = text.find('/');
  if (slash == std::string::npos) usage(fmt::format("--sample: \"{}\" is not I/N", escaped(text)));
  selection.part = number(std::string_view(text).substr(0, slash), "--sample");
  selection.parts = number(std::string_view(text).substr(slash + 1), "--sample");
  if (selection.part < 1 || selection.part > selection.parts || selection.parts > kMaxParts) {
    usage(fmt::format("--sample: {} is not from 1/N to N/N", escaped(text)));
  }
}

// What no combination of other things can make right.
void judge(const VerifyOptions& o) {
  if (o.image.empty() && o.combine.empty()) usage("IMAGE is missing; see qchain verify --help");
  if (!o.combine.empty() && (!o.image.empty() || !o.against.empty() || o.seal || o.record || o.max_duration ||
                             !o.selection.is_everything() || !o.trust_keys.empty())) {
    usage("--combine adds up reports and looks at nothing else; keys and parts are the reports'");
  }
  if (o.against.empty() && (o.manifest_only || o.no_extents)) {
    usage("--manifest-only and --no-extents are about the live side: name it with --against");
  }
  if (o.against.empty() && !o.owner.names_nobody()) {
    usage("--libvirt, --connect and --still-running are about the live side: name it with --against");
  }
  if (o.seal && (!o.against.empty() || !o.selection.is_everything() || o.max_duration || o.record ||
                 !o.trust_keys.empty())) {
    usage(
        "--seal writes the missing manifests and proves nothing: verify, also with --trust-key, in a second "
        "call");
  }
  if (!o.seal && !o.sign_key.empty()) usage("--sign-key signs what --seal writes");
  if (!o.seal && o.accept_changed) usage("--accept-changed is about what --seal writes: add --seal");
}

std::optional<std::chrono::steady_clock::time_point> deadline_of(const VerifyOptions& o) {
  if (!o.max_duration) return std::nullopt;
  return std::chrono::steady_clock::now() + std::chrono::seconds(*o.max_duration);
}

void prove_against_live(const VerifyOptions& o, Chain& chain, RestorePoints& points, bool manifests_fit,
                        VerifyReport& report, Console& console) {
  const std::unique_ptr<JobOwner> owner = open_owner(o.owner, {}, o.against);
  NbdExport export_(nbd_target(o.nbd, o.against), {});
  OpaqueDevice opaque(export_);
  BlockDevice& live = o.no_extents ? static_cast<BlockDevice&>(opaque) : export_;
  Progress progress(console.progress_style(), "verify", std::max(chain.size(), live.size()));
  // What a manifest says that does not fit is no third side.
  const std::unique_ptr<ChainDigests> stored = manifests_fit ? points.digests(0) : nullptr;
  if (o.manifest_only && !stored) {
    return report.add(
        Outcome::Incomplete,
        fmt::format("{}: has no manifest that fits, so there is nothing to hold the live side against",
                    o.image));
  }
  if (o.manifest_only) {
    ProofOptions options;
    options.workers = worker_count(o.nbd, 0, export_, Work::Read);
    options.selection = o.selection;
    options.deadline = deadline_of(o);
    options.progress = progress.updater();
    const Proof proof = prove_disk(live, chain, *stored, options);
    // What differs from a disk that is not the point in time any more says nothing.
    if (owner) owner->require_running();
    report.take(chain, proof, live.size());
    stored->finish();
    return export_.confirm();
  }
  CompareOptions options;
  options.workers = worker_count(o.nbd, 0, export_, Work::Read);
  options.progress = progress.updater();
  options.stored = stored.get();
  options.points = &points;
  if (stored) options.algorithm = stored->top().algorithm;
  options.selection = o.selection;
  options.deadline = deadline_of(o);
  const Comparison comparison = compare(chain, live, options);
  if (owner) owner->require_running();
  report.take(chain, comparison, live.size());
  if (stored) stored->finish();
  export_.confirm();
}

// Runs a stage of the proof. What keeps it from its end is one more thing to report, beside what was found.
template <class Stage>
void attempt(VerifyReport& report, Stage&& stage) {
  try {
    stage();
  } catch (const Error& error) {
    if (error.outcome() == Outcome::Interrupted || error.outcome() == Outcome::Terminated ||
        error.outcome() == Outcome::Usage) {
      throw;
    }
    report.add(error.outcome(), error.what());
  }
}

Outcome prove(const VerifyOptions& o, Console& console) {
  VerifyReport report(o, o.against.empty() ? "drill" : o.manifest_only ? "manifest-only" : "against");
  std::vector<TrustedKey> trusted = trusted_keys(o.trust_keys);
  Survey surveyed = survey(o.image, ImageFormat::Qcow2, o.common.open);
  CheckReport metadata = check_chain(surveyed, Payloads::Doubtful);
  // Whether a link that does not match matters is found out below.
  if (surveyed.is_whole()) {
    std::erase_if(metadata.problems, [](const auto& p) { return p.kind == ProblemKind::Link; });
  }
  report.take(metadata);
  attempt(report, [&] {
    if (!surveyed.is_whole()) return;
    const std::unique_ptr<Chain> chain = Chain::open(std::move(surveyed));
    RestorePoints points(*chain, std::move(trusted));
    Progress progress(console.progress_style(), "verify", chain->size());
    ProofOptions options;
    options.workers = worker_count(o.nbd.connections, Work::Read);
    options.selection = o.selection;
    options.deadline = deadline_of(o);
    options.progress = progress.updater();
    const std::vector<LayerProof> layers =
        o.against.empty() ? prove_chain(points, options) : check_manifests(points);
    report.take(*chain, layers);
    if (o.against.empty()) return;
    const bool fit = std::ranges::all_of(layers, [](const LayerProof& layer) {
      const Outcome outcome = worse(layer.manifest.outcome, layer.failure.outcome);
      return outcome == Outcome::Done || outcome == Outcome::Incomplete;
    });
    attempt(report, [&] { prove_against_live(o, *chain, points, fit, report, console); });
  });
  return report.finish(console);
}

const char* to_string(Sealed sealed) {
  switch (sealed) {
    case Sealed::Already:
      return "had a manifest";
    case Sealed::Completed:
      return "its manifest was completed";
    case Sealed::Written:
      return "a manifest was written, of what is there now";
    case Sealed::Rewritten:
      return "its manifest was written again, of what is there now";
  }
  return "?";
}

// Names the way out, which the library does not know.
Sealed seal(RestorePoints& chain, std::size_t index, const SealOptions& options) {
  try {
    return seal_layer(chain, index, options);
  } catch (const ContentChanged& error) {
    throw Error(
        error.outcome(),
        fmt::format("{}; if another tool has changed the disk on purpose (qemu-img commit, a resize), "
                    "add --accept-changed to seal what is there on your word; if not, the layer is damaged",
                    error.what()));
  }
}

Outcome seal(const VerifyOptions& o, Console& console) {
  std::optional<SigningKey> key;
  if (!o.sign_key.empty()) key.emplace(o.sign_key);
  const ConsoleRun how(console);
  const ActiveRun run(how);
  OpenedChain opened = open_chain(o.image, ImageFormat::Qcow2, o.common.open, Links::Warn, run);
  const std::vector<Layer>& files = opened.chain->layers();
  Json layers = Json::array();
  for (std::size_t i = files.size(); i-- > 0;) {
    const Layer& layer = files[i];
    Progress progress(console.progress_style(), "seal", layer.virtual_size());
    const Sealed sealed = seal(opened.points, i,
                               {worker_count(o.nbd.connections, Work::Read), key ? &*key : nullptr,
                                progress.updater(), o.accept_changed});
    const ManifestSummary& summary = opened.points.manifest(i)->summary();
    const std::string root = summary.root ? named(summary.header.algorithm, *summary.root) : "unknown";
    const std::string& accepted = summary.header.accepted;
    console.print(fmt::format("{:3} {}: {}; digest {}{}\n", i, escaped(layer.path()), to_string(sealed), root,
                              accepted.empty() ? "" : "; " + accepted_text(accepted)));
    layers.push_back({{"index", i},
                      {"file", escaped(layer.path())},
                      {"written", sealed == Sealed::Written || sealed == Sealed::Rewritten},
                      {"completed", sealed == Sealed::Completed},
                      {"root", root},
                      {"accepted", accepted.empty() ? Json(nullptr) : Json(escaped(accepted))},
                      {"signed", summary.signature.has_value()}});
  }
  Json fields;
  fields["image"] = escaped(o.image);
  fields["mode"] = "seal";
  fields["sealed"] = layers;
  console.document(Outcome::Done, fields);
  return Outcome::Done;
}

}  // namespace

std::optional<VerifyOptions> parse_verify(const std::vector<std::string>& words) {
  CommandLine line(
      "verify", "IMAGE [--against URI] [options] | --combine REPORT...",
      "Proves a chain. Without --against, a restore drill: metadata, links, every stored digest "
      "against the\nbytes on disk, and the digest of the whole disk at every restore point. With "
      "--against, the chain,\nits manifests and the live export are held against each other. What "
      "differs is named: guest range, layer,\nfile, host offset, digests and cause. What was skipped "
      "makes the exit 4.");
  line.add_positional("IMAGE");
  const auto text = [] { return po::value<std::string>(); };
  const auto texts = [] { return po::value<std::vector<std::string>>(); };
  line.add()("against", text()->value_name("URI"), "the live export");
  line.add()("manifest-only", "hold the live side against the manifests, and read no layer (4 at best)");
  line.add()("no-extents", "read every byte of the live side, whatever it says of zeros");
  line.add()("sample", text()->value_name("I/N"), "the I-th of N parts that together are everything (4)");
  line.add()("only", text()->value_name("REPORT"), "only what an earlier report (--json) found (4 at best)");
  line.add()("max-duration", text()->value_name("SECONDS"), "stop after that time (4)");
  line.add()("combine", texts()->multitoken()->value_name("REPORT..."), "add up the reports of all parts");
  line.add()("trust-key", texts()->value_name("FILE"),
             "every manifest has to be signed by this Ed25519 key (PEM; repeatable)");
  line.add()("record", "append the verdict to IMAGE.proofs");
  line.add()("seal", "write the manifests that are missing, of what is there now");
  line.add()("accept-changed",
             "with --seal: also what is not what was recorded, on your word; manifest and reports say so");
  line.add()("sign-key", text()->value_name("FILE"), "with --seal: sign them with this Ed25519 key (PEM)");
  line.add_nbd();
  line.add_owner();
  if (!line.parse(words)) return std::nullopt;
  VerifyOptions o;
  o.common = line.common();
  o.nbd = line.nbd();
  o.owner = line.owner();
  if (line.has("IMAGE")) o.image = line.required("IMAGE");
  o.against = line.text("against");
  o.manifest_only = line.has("manifest-only");
  o.no_extents = line.has("no-extents");
  if (line.has("sample")) parse_sample(line.text("sample"), o.selection);
  if (line.has("only")) o.selection.only = findings_of(line.text("only"));
  if (line.has("max-duration")) o.max_duration = number(line.text("max-duration"), "--max-duration");
  o.combine = line.texts("combine");
  o.trust_keys = line.texts("trust-key");
  o.record = line.has("record");
  o.seal = line.has("seal");
  o.accept_changed = line.has("accept-changed");
  o.sign_key = line.text("sign-key");
  judge(o);
  return o;
}

Outcome verify(const VerifyOptions& o, Console& console) {
  if (!o.combine.empty()) return combine(o, console);
  return o.seal ? seal(o, console) : prove(o, console);
}

}  // namespace qchain
