#include "cli/libvirt/nbd_address.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <charconv>
#include <string_view>

#include "cli/api/text.h"

namespace qchain {

namespace {

constexpr unsigned kNbdPort = 10809;

std::string percent_decoded(std::string_view text) {
  std::string decoded;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned char byte = 0;
    const char* const digits = text.data() + i + 1;
    if (text[i] == '%' && i + 2 < text.size() &&
        std::from_chars(digits, digits + 2, byte, 16).ptr == digits + 2) {
      decoded += static_cast<char>(byte);
      i += 2;
    } else {
      decoded += text[i];
    }
  }
  return decoded;
}

// Returns the text before `separator`, and leaves the text after it in `text`.
std::string_view take_until(std::string_view& text, std::string_view separator) {
  const std::size_t at = text.find(separator);
  const std::string_view taken = text.substr(0, at);
  text = at == std::string_view::npos ? std::string_view() : text.substr(at + separator.size());
  return taken;
}

void set_host_and_port(NbdAddress& address, std::string_view authority) {
  const std::size_t user = authority.rfind('@');
  if (user != std::string_view::npos) authority.remove_prefix(user + 1);
  const std::size_t bracket = authority.rfind(']');  // of an IPv6 address
  const std::size_t colon = authority.find(':', bracket == std::string_view::npos ? 0 : bracket);
  std::string_view host = authority.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  address.host = percent_decoded(host);
  address.port = kNbdPort;
  if (colon == std::string_view::npos) return;
  const std::string_view port = authority.substr(colon + 1);
  std::from_chars(port.data(), port.data() + port.size(), address.port);
}

bool is_loopback(const std::string& host) {
  return host.empty() || host == "localhost" || host == "::1" || host.starts_with("127.");
}

bool same_file(const std::string& one, const std::string& other) {
  if (one == other) return true;
  struct stat first {};
  struct stat second {};
  return stat(one.c_str(), &first) == 0 && stat(other.c_str(), &second) == 0 &&
         first.st_dev == second.st_dev && first.st_ino == second.st_ino;
}

}  // namespace

NbdAddress nbd_address(const std::string& uri) {
  NbdAddress address;
  std::string_view rest = uri;
  const std::string_view scheme = take_until(rest, "://");
  std::string_view query = rest;
  rest = take_until(query, "?");
  query = query.substr(0, query.find('#'));
  const std::string_view authority = take_until(rest, "/");
  address.export_name = percent_decoded(rest);
  if (scheme == "nbd" || scheme == "nbds") {
    address.transport = NbdAddress::Transport::Tcp;
    set_host_and_port(address, authority);
  } else if (scheme == "nbd+unix" || scheme == "nbds+unix") {
    address.transport = NbdAddress::Transport::Unix;
    while (!query.empty()) {
      std::string_view value = take_until(query, "&");
      if (take_until(value, "=") == "socket") address.socket = percent_decoded(value);
    }
  }
  return address;
}

std::string mismatch(const NbdAddress& address, const BackupServer& server, bool local) {
  const bool tcp = address.transport == NbdAddress::Transport::Tcp;
  if (server.transport == "unix" && local) {
    if (address.transport == NbdAddress::Transport::Unix && same_file(address.socket, server.socket))
      return {};
    return fmt::format("its NBD server listens on the socket {}", escaped(server.socket));
  }
  if (server.transport == "tcp" && server.port != 0) {
    const std::string listens = fmt::format("its NBD server listens on port {}", server.port);
    if (!tcp && local) return listens;
    if (tcp && address.port != server.port && (local || !is_loopback(address.host))) return listens;
  }
  return {};
}

}  // namespace qchain
