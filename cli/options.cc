#include "cli/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "cli/api/text.h"
#include "cli/command_line.h"
#include "extent/engine.h"
#include "extent/error.h"

namespace qchain {

namespace {

constexpr unsigned kMaxConnections = kMaxWorkers;
constexpr unsigned kMaxRequests = 1024;
constexpr unsigned kMaxTimeout = 86400;  // a day
constexpr unsigned kMaxOwnerTimeout = 3600;

std::string not_empty(const std::string& text) {
  if (text.empty()) throw Error(Outcome::Usage, "must not be empty");
  return text;
}

std::chrono::seconds owner_timeout(const std::string& text) {
  return std::chrono::seconds(parse_number(text, 1, kMaxOwnerTimeout));
}

}  // namespace

ImageFormat image_format_named(const std::string& name) {
  if (name == "qcow2") return ImageFormat::Qcow2;
  if (name == "raw") return ImageFormat::Raw;
  throw Error(Outcome::Usage, fmt::format("unknown image format \"{}\"; choose qcow2 or raw", escaped(name)));
}

void add_nbd_options(CommandLine& line, NbdOptions& o) {
  line.group("NBD connection");
  line.value("connections", "N", o.connections, number(1, kMaxConnections),
             "NBD connections, 1 to 16 (default: depends on CPU cores and server latency)");
  line.value("requests", "N", o.requests, number(1, kMaxRequests),
             "requests in flight on each connection, 1 to 1024 (default: 16)");
  line.value("timeout", "SECONDS", o.timeout, number(1, kMaxTimeout),
             "time limit for one reply of the server, 1 to 86400 (default: 30)");
  line.value("tls-certificates", "DIR", o.tls_certificates, "for nbds URIs: directory with ca-cert.pem");
  line.value("tls-psk-file", "FILE", o.tls_psk_file, "for nbds URIs: file with the pre-shared key");
}

void add_point_options(CommandLine& line, PointDemand& o) {
  line.values(
      "expect", "FIELD=VALUE", o.expect,
      "require this point in time: root=ALGORITHM:HEX, layer=UUID or checkpoint=NAME (repeatable; exit "
      "code 5 if it is another)");
  line.value("not-older-than", "DURATION", o.not_older_than, parse_duration,
             "refuse a point in time that is older: 90s, 15m, 36h, 7d, 2w (exit code 5)");
  line.value(
      "last-seen", "FILE", o.last_seen, not_empty,
      "refuse a point in time that is older than the newest one seen of this disk, which FILE records; "
      "keep it where who can write to the backups cannot (exit code 5)");
}

void add_owner_options(CommandLine& line, OwnerOptions& o) {
  line.group("Backup job");
  line.value(
      "libvirt", "DOMAIN", o.libvirt_domain, not_empty,
      "fail unless the backup job of this domain (name, UUID or ID) is still running after the last read");
  line.value("connect", "URI", o.connect_uri,
             "libvirt connection URI for --libvirt (default: that of libvirt)");
  line.value("still-running", "COMMAND", o.still_running, not_empty,
             "fail unless this shell command, run after the last read, exits with 0 (the job is running)");
  line.value("owner-timeout", "SECONDS", o.timeout, owner_timeout,
             "time limit for a reply of --libvirt or --still-running, 1 to 3600 (default: 60)");
}

void add_report_options(CommandLine& line, CommonOptions& o) {
  line.group("Common options");
  line.early_flag("json", o.json, "print one JSON document to standard output");
  line.value("progress", "STYLE", o.progress, progress_style_named,
             "progress on standard error: auto (default), bar, json or none");
  line.help_flag();
}

void add_common_options(CommandLine& line, CommonOptions& o) {
  line.group("Common options");
  line.values("backing-root", "DIR", o.open.backing_roots, "also allow backing files below DIR (repeatable)");
  line.flag("force-share", o.open.force_share,
            "open images that another program, such as a running guest, has locked for writing");
  line.flag("allow-data-file", o.open.allow_data_file, "follow references to external data files");
  add_report_options(line, o);
}

}  // namespace qchain
