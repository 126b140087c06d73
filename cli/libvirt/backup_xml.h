// The description of a backup job, as in `virsh backup-dumpxml`.
#pragma once

#include <string>
#include <vector>

namespace qchain {

/// The address of the NBD server of a pull-mode job.
struct BackupServer {
  std::string transport;  ///< "tcp" or "unix".
  std::string host;       ///< tcp; may be empty.
  unsigned port = 0;      ///< tcp; 0: not given.
  std::string socket;     ///< unix.
};

/// A disk that is part of the job.
struct BackupDisk {
  std::string target;         ///< Name of the guest's disk, such as "vda".
  std::string export_name;    ///< Name of the NBD export.
  std::string export_bitmap;  ///< Without the prefix; empty: a full backup of this disk.
};

struct BackupXml {
  bool pull = false;  ///< Pull mode, else push mode.
  BackupServer server;
  std::vector<BackupDisk> disks;
};

/// Throws Error (Io) if `xml` is not a <domainbackup>.
BackupXml parse_backup_xml(const std::string& xml);

}  // namespace qchain
