// A libvirt domain, as needed for backup jobs. Only this uses libvirt's library, which is loaded when the
// first domain is opened: it takes 6 MiB and 20 ms, and most commands never use it.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "extent/error.h"

namespace qchain {

/// A libvirt call failed. The outcome is Usage if there is no such domain, else Io.
class LibvirtError : public Error {
 public:
  enum class Kind {
    Busy,         ///< Other calls held the domain's job lock for longer than libvirtd waits for it (30 s).
    Unreachable,  ///< libvirtd does not reply, or the connection was lost; it may be restarting.
    Other,
  };
  LibvirtError(Outcome outcome, Kind kind, const std::string& message)
      : Error(outcome, message), kind_(kind) {}
  Kind kind() const noexcept { return kind_; }

 private:
  Kind kind_;
};

/// A libvirt connection and one domain. All calls can block indefinitely, see timed_call(). All throw
/// LibvirtError.
class LibvirtDomain {
 public:
  /// `connect_uri` may be empty: libvirt's default. `domain` is an id, a UUID or a name, tried in this order.
  LibvirtDomain(const std::string& connect_uri, const std::string& domain);
  ~LibvirtDomain();
  LibvirtDomain(const LibvirtDomain&) = delete;
  LibvirtDomain& operator=(const LibvirtDomain&) = delete;

  std::string name() const;
  std::string uuid() const;
  /// The id of the running domain, from libvirtd; -1 if it is shut off.
  int run_id() const;
  /// Whether libvirtd runs on this machine, so that paths can be compared.
  bool is_local() const;

  /// The XML of the current backup job according to libvirtd; nullopt: none. libvirtd notices the end of a
  /// block job only when no other call holds its job lock, so this does not prove that QEMU still runs the
  /// job.
  std::optional<std::string> backup_xml() const;
  /// QEMU's reply to a QMP command, an object with "return" or "error". Waits for libvirtd's job lock.
  /// libvirt marks the domain as tainted (custom-monitor).
  std::string monitor(const std::string& command) const;

 private:
  struct Handles;
  std::unique_ptr<Handles> handles_;
};

}  // namespace qchain
