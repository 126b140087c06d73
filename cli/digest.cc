#include "cli/digest.h"

#include <fmt/format.h>

#include <memory>

#include "cli/command_line.h"
#include "cli/console_run.h"
#include "cli/api/text.h"
#include "extent/nbd_export.h"
#include "verify/digest.h"

namespace qchain {

namespace {

std::string known_algorithm(const std::string& text) { return to_string(algorithm_named(text)); }

}  // namespace

CommandLine command_line_for(DigestCommandOptions& o) {
  CommandLine line(
      "digest", "IMAGE|FILE|URI [options]",
      "Prints the content digest (blkhash construction, blocks of 64 KiB) of the disk in a qcow2 image, "
      "of a raw file or of an NBD export.");
  line.positional("IMAGE|FILE|URI", o.request.source);
  line.value(
      "format", "FORMAT",
      [&o](const std::string& name) { o.request.is_raw = image_format_named(name) == ImageFormat::Raw; },
      "format of a file: qcow2 (default) or raw");
  line.value("digest", "ALGORITHM", o.request.algorithm, known_algorithm,
             "sha256 (default), sha512, blake2b512 or xxh3-128");
  add_nbd_options(line, o.request.nbd);
  add_owner_options(line, o.owner);
  add_common_options(line, o.common);
  line.afterwards([&o](const CommandLine&) {
    o.request.open = o.common.open;
    if (!o.owner.is_empty() && !is_nbd_uri(o.request.source)) {
      throw Error(Outcome::Usage, "--libvirt, --connect and --still-running require an NBD export");
    }
  });
  return line;
}

Outcome digest(const DigestCommandOptions& o, Console& console) {
  const std::unique_ptr<JobOwner> owner = open_owner(o.owner, {}, o.request.source);
  DigestRequest request = o.request;
  request.owner = owner.get();
  const DigestResult result = digest(request, ConsoleRun(console));
  console.print(fmt::format("{}  {}\n", result.hex, escaped(request.source)));
  Json fields;
  fields["source"] = escaped(request.source);
  fields["algorithm"] = result.algorithm;
  fields["cryptographic"] = result.is_cryptographic;
  fields["block_size"] = kDigestBlock;
  fields["length"] = result.length;
  fields["digest"] = result.hex;
  console.document(Outcome::Done, fields);
  return Outcome::Done;
}

}  // namespace qchain
