// What all verbs take: how they run, how servers are spoken to, and whose point in time it is.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "extent/cancellation.h"
#include "extent/export.h"

namespace qchain {

/// How a verb runs. The callbacks may come from any thread of the verb, one at a time of a kind; what they
/// throw ends the verb.
struct Run {
  unsigned workers =
      0;  ///< Threads; 0: by cores, and by how long servers take to answer. At most 16 are used.
  const Cancellation* cancellation =
      nullptr;  ///< Ends it within a second of request(); nullptr: nothing does.
  /// `done` of `total` bytes of a phase, such as "pull" or "verify"; `done` only grows within one.
  std::function<void(const char* phase, std::uint64_t done, std::uint64_t total)> progress;
  std::function<void(const std::string& message)> note;  ///< Worth knowing.
  std::function<void(const std::string& message)> warn;  ///< Not as it should be, and the work goes on.
};

/// How an NBD server is spoken to.
struct NbdOptions {
  unsigned connections = 0;      ///< 1 to 16; 0: as Run::workers.
  unsigned requests = 0;         ///< In flight on each connection; 0: 16.
  unsigned timeout = 0;          ///< Seconds for one answer of the server; 0: 30.
  std::string tls_certificates;  ///< For nbds URIs: directory with ca-cert.pem.
  std::string tls_psk_file;      ///< For nbds URIs: file with the pre-shared key.
};

// ---- Whose point in time it is ----

/// What the owner of a backup job knows of the disk.
struct OwnedDisk {
  std::string domain_name;
  std::string domain_uuid;
  std::string target;  ///< Of the guest's disk, such as "vda".
};

/// Whoever began the backup job behind an export, and knows whether it still runs. When a job ends, QEMU goes
/// on serving the live disk under the same name, without any error: only the owner can tell.
class QCHAIN_API JobOwner {
 public:
  virtual ~JobOwner() = default;

  /// Called after the last read, before anything is published or judged. Returns where the job is still
  /// running; throws Error (Inconclusive) where it has ended, or that cannot be told.
  virtual void require_running() = 0;
  /// For results and identities: "libvirt domain UUID, job NAME".
  virtual std::string description() const = 0;
  /// nullptr where the owner knows of no guest.
  virtual const OwnedDisk* disk() const { return nullptr; }
};

}  // namespace qchain
