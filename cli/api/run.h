// Parameters of all functions: threads, cancellation and callbacks; NBD connections; the owner of a backup
// job.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "extent/cancellation.h"
#include "extent/export.h"

namespace qchain {

/// How a function runs. Callbacks may be called from any of its threads, each callback from one thread at a
/// time. An exception from a callback ends the function.
struct Run {
  unsigned workers = 0;  ///< Threads, at most 16; 0: depends on CPU cores and server latency.
  const Cancellation* cancellation = nullptr;  ///< Cancels it within a second of request(); nullptr: none.
  /// `done` of `total` bytes of a phase, such as "pull" or "verify"; `done` never decreases within a phase.
  std::function<void(const char* phase, std::uint64_t done, std::uint64_t total)> progress;
  std::function<void(const std::string& message)> note;  ///< Information.
  std::function<void(const std::string& message)> warn;  ///< Problems that do not stop the work.
};

/// NBD connections.
struct NbdOptions {
  unsigned connections = 0;      ///< 1 to 16; 0: like Run::workers.
  unsigned requests = 0;         ///< In flight on each connection; 0: 16.
  unsigned timeout = 0;          ///< Time limit for one reply of the server, in seconds; 0: 30.
  std::string tls_certificates;  ///< For nbds URIs: directory with ca-cert.pem.
  std::string tls_psk_file;      ///< For nbds URIs: file with the pre-shared key.
};

// ---- The owner of a backup job ----

/// The disk of a backup job.
struct OwnedDisk {
  std::string domain_name;
  std::string domain_uuid;
  std::string target;  ///< Name of the guest's disk, such as "vda".
};

/// The program that started the backup job behind an export, and knows whether it is still running. When a
/// job ends, QEMU may continue to serve the live disk under the same name, without any error: only the owner
/// knows.
class QCHAIN_API JobOwner {
 public:
  virtual ~JobOwner() = default;

  /// Called after the last read, before anything is published or compared. Returns if the job is still
  /// running; throws Error (Inconclusive) if it has ended, or if that is unknown.
  virtual void require_running() = 0;
  /// For results and identities: "libvirt domain UUID, job NAME".
  virtual std::string description() const = 0;
  /// nullptr if the owner does not know the disk.
  virtual const OwnedDisk* disk() const { return nullptr; }
};

}  // namespace qchain
