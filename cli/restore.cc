#include "cli/restore.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <memory>

#include "cli/open_chain.h"
#include "cli/text.h"
#include "extent/engine.h"
#include "extent/nbd_export.h"
#include "extent/publication.h"
#include "extent/raw_copy.h"
#include "qcow2/chain.h"

namespace qchain {

namespace {

// What stands under the destination's name.
struct Destination {
  bool exists = false;
  bool is_device = false;
  FileIdentity identity;
};

Destination look_at(const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) return {};
  return {true, S_ISBLK(status.st_mode), {status.st_dev, status.st_ino}};
}

CopyResult to_file(const RestoreOptions& o, Chain& chain, const CopyOptions& copy) {
  Publication publication(o.destination, o.force ? Existing::Replace : Existing::Refuse);
  const GuestRange disk = guest_range(0, chain.top().true_length());
  const CopyResult copied = copy_raw(chain, disk, publication.file(), TargetContent::Zeros, copy);
  publication.publish();
  return copied;
}

CopyResult to_device(const RestoreOptions& o, Chain& chain, const CopyOptions& copy) {
  // O_EXCL refuses a device that is mounted or otherwise in use.
  const int descriptor = open(o.destination.c_str(), O_RDWR | O_EXCL | O_CLOEXEC);
  if (descriptor < 0) throw system_error(fmt::format("{}: cannot open", o.destination), errno);
  const File device(descriptor, o.destination);
  const std::uint64_t size = chain.size();
  if (device.size() < size) {
    throw Error(Outcome::Usage, fmt::format("{}: has {} bytes and the disk {}; use a larger device",
                                            o.destination, device.size(), size));
  }
  try {
    const CopyResult copied = copy_raw(chain, guest_range(0, size), device, TargetContent::Unknown, copy);
    device.sync();
    return copied;
  } catch (const Error& error) {
    throw Error(error.outcome(),
                fmt::format("{}; the content of {} is not complete", error.what(), o.destination));
  }
}

}  // namespace

std::optional<RestoreOptions> parse_restore(const std::vector<std::string>& words) {
  CommandLine line("restore", "IMAGE DEST [options]",
                   "Writes out the disk that a chain describes, at the point in time of IMAGE: to a raw "
                   "file, which\nbecomes sparse, or onto a block device, whose old content never shows "
                   "through.");
  line.add_positional("IMAGE");
  line.add_positional("DEST");
  line.add()("no-verify", "exit with 0 although nothing proved what was read");
  line.add()("force", "replace a file that exists");
  if (!line.parse(words)) return std::nullopt;
  RestoreOptions o;
  o.common = line.common();
  o.image = line.required("IMAGE");
  o.destination = line.required("DEST");
  o.no_verify = line.has("no-verify");
  o.force = line.has("force");
  return o;
}

Outcome restore(const RestoreOptions& o, Console& console) {
  if (is_nbd_uri(o.destination)) {
    throw Error(Outcome::Usage, fmt::format("{}: restoring to an export is not possible yet; name a file "
                                            "or a block device",
                                            o.destination));
  }
  const std::unique_ptr<Chain> chain = open_chain(o.image, ImageFormat::Qcow2, o.common, console);
  const Destination destination = look_at(o.destination);
  if (destination.exists && chain->contains(destination.identity)) {
    throw Error(Outcome::Usage, fmt::format("{}: is a layer of the chain that is restored", o.destination));
  }
  Progress progress(console.progress_style(), "restore", chain->size());
  const CopyOptions copy{default_workers(), progress.updater()};
  const CopyResult copied = destination.is_device ? to_device(o, *chain, copy) : to_file(o, *chain, copy);

  const Outcome outcome = o.no_verify ? Outcome::Done : Outcome::Incomplete;
  const char* const proof =
      o.no_verify ? "not verified, as asked" : "not verified: the chain has no manifest";
  console.print(fmt::format("{}: restored from {}, {}, {} of data; {}\n", escaped(o.destination),
                            escaped(o.image), human_size(chain->size()), human_size(copied.data_bytes),
                            proof));
  Json fields;
  fields["image"] = escaped(o.image);
  fields["destination"] = escaped(o.destination);
  fields["bytes"] = chain->top().true_length();
  fields["data_bytes"] = copied.data_bytes;
  fields["zero_bytes"] = copied.zero_bytes;
  fields["verified"] = false;
  fields["proof"] = proof;
  console.document(outcome, fields);
  return outcome;
}

}  // namespace qchain
