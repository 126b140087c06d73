#include "cli/options.h"

#include <fmt/format.h>

#include <boost/program_options/parsers.hpp>
#include <chrono>
#include <cstdio>
#include <sstream>
#include <utility>

#include "cli/api/text.h"
#include "extent/engine.h"
#include "extent/error.h"

namespace qchain {

namespace po = boost::program_options;

namespace {
constexpr unsigned kLineLength = 100;
constexpr unsigned kMaxConnections = kMaxWorkers;
constexpr unsigned kMaxRequests = 1024;
constexpr unsigned kMaxTimeout = 86400;  // a day

unsigned bounded(const po::variables_map& values, const char* name, unsigned max) {
  if (values.count(name) == 0) return 0;
  const unsigned value = values[name].as<unsigned>();
  if (value < 1 || value > max) {
    throw Error(Outcome::Usage, fmt::format("--{}: {} is not from 1 to {}", name, value, max));
  }
  return value;
}
}  // namespace

ImageFormat image_format_named(const std::string& name, const char* option) {
  if (name == "qcow2") return ImageFormat::Qcow2;
  if (name == "raw") return ImageFormat::Raw;
  throw Error(Outcome::Usage, fmt::format("{}: \"{}\" is neither qcow2 nor raw", option, escaped(name)));
}

CommandLine::CommandLine(std::string command, std::string usage, std::string summary)
    : command_(std::move(command)),
      usage_(std::move(usage)),
      summary_(std::move(summary)),
      visible_("Options", kLineLength) {
  add()("json", "print one JSON document on standard output");
  add()("progress", po::value<std::string>()->value_name("STYLE"),
        "auto, bar, json or none, on standard error");
  add()("backing-root", po::value<std::vector<std::string>>()->value_name("DIR"),
        "allow backing files beneath DIR too (repeatable)");
  add()("force-share", "read images although another program, such as a guest, writes to them");
  add()("allow-data-file", "follow the names of external data files");
  add()("help", "print this and exit");
}

po::options_description_easy_init CommandLine::add() { return visible_.add_options(); }

void CommandLine::add_positional(const char* name, int count) {
  hidden_.add_options()(name, po::value<std::vector<std::string>>());
  positional_.add(name, count);
}

void CommandLine::add_nbd() {
  add()("connections", po::value<unsigned>()->value_name("N"),
        "NBD connections, 1 to 16 (default: by cores and by how long the server takes to answer)");
  add()("requests", po::value<unsigned>()->value_name("N"),
        "requests in flight on each connection (default: 16)");
  add()("timeout", po::value<unsigned>()->value_name("SECONDS"),
        "how long the server may take for one answer, 1 to 86400 (default: 30)");
  add()("tls-certificates", po::value<std::string>()->value_name("DIR"),
        "for nbds URIs: directory with ca-cert.pem");
  add()("tls-psk-file", po::value<std::string>()->value_name("FILE"),
        "for nbds URIs: file with the pre-shared key");
}

bool CommandLine::parse(const std::vector<std::string>& words) {
  po::options_description all;
  all.add(visible_).add(hidden_);
  using Style = po::command_line_style::style_t;
  constexpr int kStyle = Style::unix_style & ~Style::allow_guessing;
  try {
    po::store(po::command_line_parser(words).options(all).positional(positional_).style(kStyle).run(),
              values_);
    po::notify(values_);
  } catch (const po::error& error) {
    throw Error(Outcome::Usage, fmt::format("{}; see qchain {} --help", error.what(), command_));
  }
  if (values_.count("help") == 0) return true;
  std::ostringstream options;
  options << visible_;
  std::fputs(
      fmt::format("Usage: qchain {} {}\n\n{}\n\n{}", command_, usage_, summary_, options.str()).c_str(),
      stdout);
  return false;
}

bool CommandLine::has(const char* name) const { return values_.count(name) != 0; }

std::string CommandLine::text(const char* name, const std::string& otherwise) const {
  return has(name) ? values_[name].as<std::string>() : otherwise;
}

std::vector<std::string> CommandLine::texts(const char* name) const {
  return has(name) ? values_[name].as<std::vector<std::string>>() : std::vector<std::string>();
}

std::optional<std::uint64_t> CommandLine::size(const char* name) const {
  if (!has(name)) return std::nullopt;
  return parse_size(text(name), fmt::format("--{}", name));
}

std::string CommandLine::required(const char* name) const {
  const std::vector<std::string> given = texts(name);
  if (given.empty() || given.front().empty()) {
    throw Error(Outcome::Usage, fmt::format("{} is missing; usage: qchain {} {}", name, command_, usage_));
  }
  return given.front();
}

CommonOptions CommandLine::common() const {
  CommonOptions common;
  common.json = has("json");
  common.progress = progress_style_named(text("progress", "auto"));
  common.open.backing_roots = texts("backing-root");
  common.open.force_share = has("force-share");
  common.open.allow_data_file = has("allow-data-file");
  return common;
}

NbdOptions CommandLine::nbd() const {
  NbdOptions nbd;
  nbd.connections = bounded(values_, "connections", kMaxConnections);
  nbd.requests = bounded(values_, "requests", kMaxRequests);
  nbd.timeout = bounded(values_, "timeout", kMaxTimeout);
  nbd.tls_certificates = text("tls-certificates");
  nbd.tls_psk_file = text("tls-psk-file");
  return nbd;
}

void CommandLine::add_owner() {
  const auto text = [] { return po::value<std::string>(); };
  add()("libvirt", text()->value_name("DOMAIN"),
        "succeed only if this domain's backup job is still running after the last read (name, UUID or id)");
  add()("connect", text()->value_name("URI"),
        "the libvirt connection for --libvirt (default: libvirt's own)");
  add()("still-running", text()->value_name("COMMAND"),
        "succeed only if this shell command exits with 0 after the last read: the job is running");
  add()("owner-timeout", po::value<unsigned>()->value_name("SECONDS"),
        "how long --libvirt or --still-running may take to answer, 1 to 3600 (default: 60)");
}

OwnerOptions CommandLine::owner() const {
  constexpr unsigned kMaxTimeout = 3600;
  OwnerOptions owner;
  for (const char* name : {"libvirt", "still-running"}) {
    if (has(name) && text(name).empty()) throw Error(Outcome::Usage, fmt::format("--{}: is empty", name));
  }
  owner.libvirt_domain = text("libvirt");
  owner.connect_uri = text("connect");
  owner.still_running = text("still-running");
  const unsigned timeout = bounded(values_, "owner-timeout", kMaxTimeout);
  if (timeout != 0) owner.timeout = std::chrono::seconds(timeout);
  return owner;
}

}  // namespace qchain
