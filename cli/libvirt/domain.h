// A libvirt domain, as far as backup jobs need one. The only door to libvirt's library, which is loaded when
// the first domain is opened: it and what it needs cost 6 MiB and 20 ms, and most commands never use it.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "extent/error.h"

namespace qchain {

/// libvirt has refused a call. The outcome is Usage where there is no such domain, else Io.
class LibvirtError : public Error {
 public:
  enum class Kind {
    Busy,         ///< Other calls held the domain's job lock for longer than libvirtd waits for it (30 s).
    Unreachable,  ///< libvirtd does not answer, or the connection to it was lost; it may be restarting.
    Other,
  };
  LibvirtError(Outcome outcome, Kind kind, const std::string& message)
      : Error(outcome, message), kind_(kind) {}
  Kind kind() const noexcept { return kind_; }

 private:
  Kind kind_;
};

/// A connection to libvirt and a domain of it. All calls can block for as long as libvirtd pleases: see
/// timed_call(). All throw LibvirtError.
class LibvirtDomain {
 public:
  /// `connect_uri` may be empty: libvirt's default. `domain` is an id, a UUID or a name, tried in this order.
  LibvirtDomain(const std::string& connect_uri, const std::string& domain);
  ~LibvirtDomain();
  LibvirtDomain(const LibvirtDomain&) = delete;
  LibvirtDomain& operator=(const LibvirtDomain&) = delete;

  std::string name() const;
  std::string uuid() const;
  /// The number of this run of the domain, as libvirtd has it now; -1 where it is shut off.
  int run_id() const;
  /// Whether libvirtd is on this machine, so that its paths are ours.
  bool is_local() const;

  /// The description of the backup job that libvirtd believes to run; nullopt without one. libvirtd learns of
  /// the end of a block job only when no other call holds its job lock: what it believes is no proof that
  /// QEMU still runs it.
  std::optional<std::string> backup_xml() const;
  /// QEMU's own answer to a QMP command, an object with "return" or "error". Waits for libvirtd's job lock.
  /// libvirt marks the domain as tainted (custom-monitor).
  std::string monitor(const std::string& command) const;

 private:
  struct Handles;
  std::unique_ptr<Handles> handles_;
};

}  // namespace qchain
