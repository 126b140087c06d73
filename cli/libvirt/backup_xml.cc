#include "cli/libvirt/backup_xml.h"

#include <fmt/format.h>

#include <pugixml.hpp>

#include "extent/error.h"

namespace qchain {

namespace {

BackupDisk disk_of(const pugi::xml_node& node) {
  BackupDisk disk;
  disk.target = node.attribute("name").value();
  disk.export_name = node.attribute("exportname").as_string(disk.target.c_str());
  disk.export_bitmap = node.attribute("exportbitmap").value();
  // libvirt's default for an incremental backup.
  if (disk.export_bitmap.empty() && node.attribute("incremental"))
    disk.export_bitmap = "backup-" + disk.target;
  return disk;
}

}  // namespace

BackupXml parse_backup_xml(const std::string& xml) {
  pugi::xml_document document;
  const pugi::xml_parse_result parsed = document.load_buffer(xml.data(), xml.size());
  const pugi::xml_node root = document.child("domainbackup");
  if (!parsed || !root) {
    throw Error(Outcome::Io, fmt::format("libvirt's description of the backup job is not <domainbackup>: {}",
                                         parsed ? "another element" : parsed.description()));
  }
  BackupXml job;
  job.pull = std::string(root.attribute("mode").as_string("push")) == "pull";
  const pugi::xml_node server = root.child("server");
  job.server.transport = server.attribute("transport").as_string("tcp");
  job.server.host = server.attribute("name").value();
  job.server.port = server.attribute("port").as_uint();
  job.server.socket = server.attribute("socket").value();
  for (const pugi::xml_node& node : root.child("disks").children("disk")) {
    if (std::string(node.attribute("backup").as_string("yes")) == "yes") job.disks.push_back(disk_of(node));
  }
  return job;
}

}  // namespace qchain
