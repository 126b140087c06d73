#include "cli/verify.h"

#include <fmt/format.h>

#include <chrono>
#include <limits>
#include <memory>

#include "cli/combine.h"
#include "cli/command_line.h"
#include "cli/console_run.h"
#include "cli/api/text.h"
#include "cli/verify_report.h"

namespace qchain {

namespace {

[[noreturn]] void usage(const std::string& message) { throw Error(Outcome::Usage, message); }

void parse_sample(const std::string& text, Selection& selection) {
  const std::size_t slash = text.find('/');
  if (slash == std::string::npos) usage(fmt::format("\"{}\" is not I/N", escaped(text)));
  selection.parts = parse_number(std::string_view(text).substr(slash + 1), 1, Selection::kMaxParts);
  selection.part = parse_number(std::string_view(text).substr(0, slash), 1, selection.parts);
}

// Rejects invalid combinations of options.
void validate(const VerifyOptions& o) {
  if (o.image.empty() && o.combine.empty())
    usage("verify: missing IMAGE. Run 'qchain verify --help' for details");
  if (!o.combine.empty() && (!o.image.empty() || !o.against.empty() || o.seal || o.record || o.max_duration ||
                             !o.selection.is_everything() || !o.trust_keys.empty() || !o.point.is_empty())) {
    usage("--combine only combines reports: it cannot be used with IMAGE and other options of verify");
  }
  if (o.against.empty() && (o.manifest_only || o.no_extents)) {
    usage("--manifest-only and --no-extents require --against");
  }
  if (o.against.empty() && !o.owner.is_empty()) {
    usage("--libvirt, --connect and --still-running require --against");
  }
  if (o.seal && (!o.against.empty() || !o.selection.is_everything() || o.max_duration || o.record ||
                 !o.point.is_empty())) {
    usage("--seal only writes missing manifests: verify the chain in a second run without --seal");
  }
  if (o.seal && !o.trust_keys.empty() && o.sign_key.empty()) {
    usage("--trust-key with --seal requires --sign-key");
  }
  if (!o.seal && !o.sign_key.empty()) usage("--sign-key requires --seal");
  if (!o.seal && o.accept_changed) usage("--accept-changed requires --seal");
}

Outcome prove(const VerifyOptions& o, Console& console) {
  const auto start = std::chrono::steady_clock::now();
  const std::unique_ptr<JobOwner> owner = open_owner(o.owner, {}, o.against);
  VerifyRequest request;
  request.image = o.image;
  request.open = o.common.open;
  request.against = o.against;
  request.manifest_only = o.manifest_only;
  request.no_extents = o.no_extents;
  request.nbd = o.nbd;
  request.owner = owner.get();
  request.selection = o.selection;
  if (o.max_duration) request.max_duration = std::chrono::seconds(*o.max_duration);
  request.trust_keys = o.trust_keys;
  request.point = o.point;
  VerifyResult result;
  {
    const ConsoleRun run(console);
    result = verify(request, run);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return report_verify(o, result, seconds.count(), console);
}

const char* to_string(Sealed sealed) {
  switch (sealed) {
    case Sealed::Already:
      return "already had a manifest";
    case Sealed::Completed:
      return "manifest completed";
    case Sealed::Written:
      return "manifest written from the current content";
    case Sealed::Rewritten:
      return "manifest rewritten from the current content";
  }
  return "?";
}

std::string root_text(const SealedLayer& layer) { return layer.root.empty() ? "unknown" : layer.root; }

void print_sealed(const SealedLayer& layer, Console& console) {
  console.print(fmt::format("{:3} {}: {}; digest {}{}\n", layer.index, escaped(layer.file),
                            to_string(layer.sealed), root_text(layer),
                            layer.accepted.empty() ? "" : "; " + accepted_text(layer.accepted)));
}

Json to_json(const SealedLayer& layer) {
  return {{"index", layer.index},
          {"file", escaped(layer.file)},
          {"written", layer.sealed == Sealed::Written || layer.sealed == Sealed::Rewritten},
          {"completed", layer.sealed == Sealed::Completed},
          {"root", root_text(layer)},
          {"accepted", layer.accepted.empty() ? Json(nullptr) : Json(escaped(layer.accepted))},
          {"signed", layer.is_signed}};
}

Outcome seal(const VerifyOptions& o, Console& console) {
  SealRequest request;
  request.image = o.image;
  request.open = o.common.open;
  request.sign_key = o.sign_key;
  request.accept_changed = o.accept_changed;
  request.trust_keys = o.trust_keys;
  SealResult result;
  {
    const ConsoleRun by_console(console);
    Run run = by_console;
    run.workers = o.nbd.connections;
    result = seal(request, run);
  }
  console.result_stands();
  Json fields;
  fields["image"] = escaped(o.image);
  fields["mode"] = "seal";
  fields["sealed"] = Json::array();
  for (const SealedLayer& layer : result.layers) {
    print_sealed(layer, console);
    fields["sealed"].push_back(to_json(layer));
  }
  console.document(Outcome::Done, fields);
  return Outcome::Done;
}

void add_scope_options(CommandLine& line, VerifyOptions& o) {
  line.value("against", "URI", o.against, "live NBD export to compare with");
  line.flag("manifest-only", o.manifest_only,
            "compare the live export with the manifests, without reading the layers (exit code 4 at best)");
  line.flag("no-extents", o.no_extents,
            "read every byte of the live export: do not rely on the block status that the server reports");
  line.value(
      "sample", "I/N", [&o](const std::string& text) { parse_sample(text, o.selection); },
      "verify the I-th of N parts, which together cover everything (exit code 4 at best)");
  line.value("only", "REPORT", o.selection.only, findings_of,
             "verify only the ranges that an earlier report (--json) lists as bad (exit code 4 at best)");
  line.value("max-duration", "SECONDS", o.max_duration, number(0, std::numeric_limits<unsigned>::max()),
             "stop after this time (exit code 4)");
  line.list("combine", "REPORT...", o.combine, "combine the reports (--json) of all parts");
  line.values(
      "trust-key", "FILE", o.trust_keys,
      "require every manifest to be signed by an Ed25519 public key of this file (PEM; repeatable); with "
      "--seal: keep such signatures");
  add_point_options(line, o.point);
  line.flag("record", o.record, "append the verdict to IMAGE.proofs");
}

void add_seal_options(CommandLine& line, VerifyOptions& o) {
  line.group("Missing manifests");
  line.flag("seal", o.seal, "write the missing manifests, from the current content of the layers");
  line.flag("accept-changed", o.accept_changed,
            "with --seal: accept content that differs from the recorded digest; manifest and reports say so");
  line.value("sign-key", "FILE", o.sign_key,
             "with --seal: sign the manifests with this Ed25519 private key (PEM)");
}

}  // namespace

CommandLine command_line_for(VerifyOptions& o) {
  CommandLine line(
      "verify", "IMAGE [--against URI] [options] | --combine REPORT...",
      "Verifies a chain. Without --against, a restore drill: metadata, links, every stored digest against "
      "the data on disk, and the digest of the whole disk at every restore point. With --against, the "
      "chain, its manifests and the live export are compared with each other. Each difference is reported "
      "with its guest range, layer, file, host offset, digests and cause.\n"
      "Exits 4 if anything was skipped.");
  line.optional_positional("IMAGE", o.image);
  add_scope_options(line, o);
  add_seal_options(line, o);
  add_nbd_options(line, o.nbd);
  add_owner_options(line, o.owner);
  add_common_options(line, o.common);
  line.afterwards([&o](const CommandLine&) { validate(o); });
  return line;
}

Outcome verify(const VerifyOptions& o, Console& console) {
  if (!o.combine.empty()) return combine(o, console);
  return o.seal ? seal(o, console) : prove(o, console);
}

}  // namespace qchain
