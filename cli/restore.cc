#include "cli/restore.h"

#include <unistd.h>

#include "cli/console_run.h"
#include "cli/restore_report.h"

namespace qchain {

namespace po = boost::program_options;

std::optional<RestoreOptions> parse_restore(const std::vector<std::string>& words) {
  CommandLine line("restore", "IMAGE DEST [options]",
                   "Writes out the disk that a chain describes, at the point in time of IMAGE: to a raw "
                   "file, which\nbecomes sparse, "
                   "to standard output (-), or onto a block device or an NBD export, all of which that\nthe "
                   "disk covers is "
                   "overwritten; or, with --format qcow2, as one full layer. Every block is held\nagainst "
                   "its stored digest before "
                   "it is written.");
  line.add_positional("IMAGE");
  line.add_positional("DEST");
  line.add()("format", po::value<std::string>()->value_name("FORMAT"),
             "raw (default), or qcow2: one full layer, with a manifest");
  line.add()("no-verify",
             "do not look at the manifests; what cannot be read becomes zeros and is listed (4)");
  line.add()("salvage", "write all that can be read, and list what cannot, or is not what was backed up (4)");
  line.add()("trust-key", po::value<std::vector<std::string>>()->value_name("FILE"),
             "every manifest has to be signed by this Ed25519 key (PEM; repeatable)");
  line.add()("read-back", "read again what was written, past the page cache, and compare (1 if it differs)");
  line.add()("zero-rest", "zero what a device or an export has behind the end of the disk");
  line.add()("preallocate", "set aside the space of zeros too");
  line.add()("force", "replace a file that exists");
  line.add_nbd();
  if (!line.parse(words)) return std::nullopt;
  RestoreOptions o;
  o.common = line.common();
  RestoreRequest& r = o.request;
  r.open = o.common.open;
  r.nbd = line.nbd();
  r.image = line.required("IMAGE");
  r.destination = line.required("DEST");
  r.as_layer = image_format_named(line.text("format", "raw"), "--format") == ImageFormat::Qcow2;
  r.no_verify = line.has("no-verify");
  r.trust_keys = line.texts("trust-key");
  r.read_back = line.has("read-back");
  r.salvage = line.has("salvage");
  r.zero_rest = line.has("zero-rest");
  r.preallocate = line.has("preallocate");
  r.replace = line.has("force");
  if (r.destination == "-") {
    r.descriptor = STDOUT_FILENO;
    if (o.common.json) throw Error(Outcome::Usage, "standard output cannot take the disk and --json both");
  }
  return o;
}

Outcome restore(const RestoreOptions& o, Console& console) {
  if (o.request.descriptor >= 0) console.use_standard_error();
  const RestoreResult result = restore(o.request, ConsoleRun(console));
  console.result_stands();
  report_restore(o.request, result, console);
  return result.outcome;
}

}  // namespace qchain
