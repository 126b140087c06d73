#include "cli/digest.h"

#include <fmt/format.h>

#include <memory>

#include "cli/console_run.h"
#include "cli/api/text.h"
#include "extent/nbd_export.h"
#include "verify/digest.h"

namespace qchain {

namespace po = boost::program_options;

std::optional<DigestCommandOptions> parse_digest(const std::vector<std::string>& words) {
  CommandLine line("digest", "IMAGE|FILE|URI [options]",
                   "Prints the content digest (blkhash form, blocks of 64 KiB) of the disk that an image "
                   "describes,\nof a raw file or of an NBD export.");
  line.add_positional("IMAGE|FILE|URI");
  line.add()("format", po::value<std::string>()->value_name("FORMAT"), "of a file: qcow2 (default) or raw");
  line.add()("digest", po::value<std::string>()->value_name("ALGORITHM"),
             "sha256 (default), sha512, blake2b512 or xxh3-128");
  line.add_nbd();
  line.add_owner();
  if (!line.parse(words)) return std::nullopt;
  DigestCommandOptions o;
  o.common = line.common();
  o.owner = line.owner();
  DigestRequest& r = o.request;
  r.open = o.common.open;
  r.nbd = line.nbd();
  r.source = line.required("IMAGE|FILE|URI");
  r.is_raw = image_format_named(line.text("format", "qcow2"), "--format") == ImageFormat::Raw;
  r.algorithm = line.text("digest", "sha256");
  if (!o.owner.names_nobody() && !is_nbd_uri(r.source)) {
    throw Error(Outcome::Usage, "--libvirt, --connect and --still-running are for NBD exports");
  }
  return o;
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
