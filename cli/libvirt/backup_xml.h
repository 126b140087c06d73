// What `virsh backup-dumpxml` tells of a backup job.
#pragma once

#include <string>
#include <vector>

namespace qchain {

/// Where the NBD server of a pull job listens.
struct BackupServer {
  std::string transport;  ///< "tcp" or "unix".
  std::string host;       ///< tcp; may be empty.
  unsigned port = 0;      ///< tcp; 0: not said.
  std::string socket;     ///< unix.
};

/// A disk that is part of the job.
struct BackupDisk {
  std::string target;         ///< Of the guest's disk, such as "vda".
  std::string export_name;    ///< Of the NBD export.
  std::string export_bitmap;  ///< Without its prefix; empty: a full backup of this disk.
};

struct BackupXml {
  bool pull = false;  ///< Else push.
  BackupServer server;
  std::vector<BackupDisk> disks;
};

/// Throws Error (Io) where `xml` is not a <domainbackup>.
BackupXml parse_backup_xml(const std::string& xml);

}  // namespace qchain
