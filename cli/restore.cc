#include "cli/restore.h"

#include <unistd.h>

#include "cli/command_line.h"
#include "cli/console_run.h"
#include "cli/restore_report.h"
#include "qcow2/chain.h"

namespace qchain {

CommandLine command_line_for(RestoreOptions& o) {
  CommandLine line(
      "restore", "IMAGE DEST [options]",
      "Writes the disk that a chain describes, at the point in time of IMAGE: to a sparse raw file, to "
      "standard output (-), or over a block device or an NBD export; or, with --format qcow2, to one "
      "full image. Every block is verified against its stored digest before it is written.\n"
      "On a device or an export, everything from the start to the size of the disk is overwritten.");
  line.positional("IMAGE", o.request.image);
  line.positional("DEST", o.request.destination);
  line.value(
      "format", "FORMAT",
      [&o](const std::string& name) { o.request.as_layer = image_format_named(name) == ImageFormat::Qcow2; },
      "output format: raw (default), or qcow2 for one full image with a manifest");
  line.flag("no-verify", o.request.no_verify,
            "ignore the manifests; write zeros for what cannot be read, and list it (exit code 4)");
  line.flag("salvage", o.request.salvage,
            "write all that can be read; list what cannot be read, or differs from what was backed up "
            "(exit code 4)");
  line.values("trust-key", "FILE", o.request.trust_keys,
              "require every manifest to be signed by an Ed25519 public key of this file (PEM; repeatable)");
  add_point_options(line, o.request.point);
  line.flag("read-back", o.request.read_back,
            "read back what was written, bypassing the page cache, and compare (exit code 1 if it differs)");
  line.flag("zero-rest", o.request.zero_rest,
            "write zeros to the rest of a device or an export after the end of the disk");
  line.flag("preallocate", o.request.preallocate, "allocate space for zeros too");
  line.flag("force", o.request.replace, "replace an existing file");
  add_nbd_options(line, o.request.nbd);
  add_common_options(line, o.common);
  line.afterwards([&o](const CommandLine&) {
    o.request.open = o.common.open;
    if (o.request.destination != "-") return;
    o.request.descriptor = STDOUT_FILENO;
    if (o.common.json)
      throw Error(Outcome::Usage, "- and --json are mutually exclusive: both write to standard output");
  });
  return line;
}

Outcome restore(const RestoreOptions& o, Console& console) {
  if (o.request.descriptor >= 0) console.use_standard_error();
  const RestoreResult result = restore(o.request, ConsoleRun(console));
  console.result_stands();
  report_restore(o.request, result, console);
  return result.outcome;
}

}  // namespace qchain
