#include "cli/job_owner.h"

#include "cli/command_check.h"
#include "extent/error.h"
#ifdef QCHAIN_HAVE_LIBVIRT
#include "cli/libvirt/libvirt_owner.h"
#endif

namespace qchain {

namespace {
[[noreturn]] void usage(const char* message) { throw Error(Outcome::Usage, message); }
}  // namespace

std::unique_ptr<JobOwner> open_owner(const OwnerOptions& options,
                                     [[maybe_unused]] const std::string& export_name,
                                     [[maybe_unused]] const std::string& nbd_uri) {
  if (!options.connect_uri.empty() && options.libvirt_domain.empty()) {
    usage("--connect requires --libvirt DOMAIN");
  }
  if (!options.libvirt_domain.empty() && !options.still_running.empty()) {
    usage("--libvirt and --still-running are mutually exclusive");
  }
  if (!options.libvirt_domain.empty()) {
#ifdef QCHAIN_HAVE_LIBVIRT
    return open_libvirt_owner(options, export_name, nbd_uri);
#else
    usage(
        "--libvirt: this build does not support libvirt; build qchain with libvirt-dev and "
        "libpugixml-dev, or use --still-running");
#endif
  }
  if (!options.still_running.empty()) return open_command_owner(options.still_running, options.timeout);
  return nullptr;
}

}  // namespace qchain
