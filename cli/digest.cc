#include "cli/digest.h"

#include <fmt/format.h>

#include <memory>

#include "cli/command_line.h"
#include "cli/open_chain.h"
#include "cli/text.h"
#include "extent/nbd_export.h"
#include "verify/device_digest.h"

namespace qchain {

namespace {

// The digest of `device`'s first `length` bytes.
Digest digest_with_progress(const DigestCommandOptions& o, BlockDevice& device, std::uint64_t length,
                            unsigned workers, Console& console) {
  Progress progress(console.progress_style(), "digest", length);
  return digest_of(device, length, {o.algorithm, workers, progress.updater()});
}

void report(const DigestCommandOptions& o, const Digest& value, std::uint64_t length, Console& console) {
  console.print(fmt::format("{}  {}\n", value.hex(), escaped(o.source)));
  Json fields;
  fields["source"] = escaped(o.source);
  fields["algorithm"] = to_string(o.algorithm);
  fields["cryptographic"] = is_cryptographic(o.algorithm);
  fields["block_size"] = kDigestBlock;
  fields["length"] = length;
  fields["digest"] = value.hex();
  console.document(Outcome::Done, fields);
}

}  // namespace

CommandLine command_line_for(DigestCommandOptions& o) {
  CommandLine line(
      "digest", "IMAGE|FILE|URI [options]",
      "Prints the content digest (blkhash construction, blocks of 64 KiB) of the disk in a qcow2 "
      "image, of a raw file or of an NBD export.");
  line.positional("IMAGE|FILE|URI", o.source);
  line.value("format", "FORMAT", o.format, image_format_named, "format of a file: qcow2 (default) or raw");
  line.value("digest", "ALGORITHM", o.algorithm, algorithm_named,
             "sha256 (default), sha512, blake2b512 or xxh3-128");
  add_nbd_options(line, o.nbd);
  add_owner_options(line, o.owner);
  add_common_options(line, o.common);
  line.afterwards([&o](const CommandLine&) {
    if (!o.owner.names_nobody() && !is_nbd_uri(o.source)) {
      throw Error(Outcome::Usage, "--libvirt, --connect and --still-running are for NBD exports");
    }
  });
  return line;
}

Outcome digest(const DigestCommandOptions& o, Console& console) {
  if (is_nbd_uri(o.source)) {
    const std::unique_ptr<JobOwner> owner = open_owner(o.owner, {}, o.source);
    NbdExport live(o.nbd.target(o.source), {});
    const Digest value =
        digest_with_progress(o, live, live.size(), o.nbd.workers_for(live, Work::Read), console);
    live.confirm();
    if (owner) owner->require_running();
    report(o, value, live.size(), console);
    return Outcome::Done;
  }
  const std::unique_ptr<Chain> chain =
      open_chain(o.source, o.format, o.common, console, Links::Warn, "--format raw");
  const std::uint64_t length = chain->top().true_length();
  report(o, digest_with_progress(o, *chain, length, o.nbd.workers(Work::Read), console), length, console);
  return Outcome::Done;
}

}  // namespace qchain
