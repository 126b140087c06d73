#pragma once

#include <string>

#include "cli/libvirt/backup_xml.h"

namespace qchain {

/// The address in an NBD URI.
struct NbdAddress {
  enum class Transport { Tcp, Unix, Other };
  Transport transport = Transport::Other;
  std::string host;    ///< Tcp.
  unsigned port = 0;   ///< Tcp.
  std::string socket;  ///< Unix.
  std::string export_name;
};

/// Parses a URI that libnbd accepts; of other URIs, as much as possible.
NbdAddress nbd_address(const std::string& uri);

/// Why an export at `address` cannot be one of `server`; empty if it can, or if that is unknown. Compares
/// socket paths and local ports only if libvirt is `local`, because they may be forwarded otherwise.
std::string mismatch(const NbdAddress& address, const BackupServer& server, bool local);

}  // namespace qchain
