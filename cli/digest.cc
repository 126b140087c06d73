#include "cli/digest.h"

#include <fmt/format.h>

#include <memory>

#include "cli/open_chain.h"
#include "cli/text.h"
#include "extent/nbd_export.h"
#include "verify/device_digest.h"

namespace qchain {

namespace po = boost::program_options;

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
  o.nbd = line.nbd();
  o.owner = line.owner();
  o.source = line.required("IMAGE|FILE|URI");
  o.format = image_format_named(line.text("format", "qcow2"), "--format");
  o.algorithm = algorithm_named(line.text("digest", "sha256"));
  if (!o.owner.names_nobody() && !is_nbd_uri(o.source)) {
    throw Error(Outcome::Usage, "--libvirt, --connect and --still-running are for NBD exports");
  }
  return o;
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
