#pragma once

#include <string>

#include "cli/libvirt/backup_xml.h"

namespace qchain {

/// Where an NBD URI leads.
struct NbdAddress {
  enum class Transport { Tcp, Unix, Other };
  Transport transport = Transport::Other;
  std::string host;    ///< Tcp.
  unsigned port = 0;   ///< Tcp.
  std::string socket;  ///< Unix.
  std::string export_name;
};

/// Takes a URI that libnbd accepts apart; of another, it tells what it can.
NbdAddress nbd_address(const std::string& uri);

/// Why an export at `address` cannot be one of `server`; empty where it can, or where that cannot be told.
/// Paths of sockets and the ports of this machine are compared where libvirt is `local`: else something may
/// be forwarded.
std::string mismatch(const NbdAddress& address, const BackupServer& server, bool local);

}  // namespace qchain
