#include "cli/libvirt/domain.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <libvirt/libvirt-qemu.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

#include <charconv>
#include <cstdlib>

#include "cli/api/text.h"

namespace qchain {

namespace {

// libvirt's libraries, loaded once and never unloaded, because abandoned calls may still be running.
class Api {
 public:
  // Throws Error (Io).
  static const Api& get() {
    static const Api api;
    return api;
  }

#define QCHAIN_LIBVIRT(library, function) \
  decltype(&::function) function = load<decltype(&::function)>(library, #function)

 private:
  void* const main_ = open("libvirt.so.0");
  void* const qemu_ = open("libvirt-qemu.so.0");

 public:
  QCHAIN_LIBVIRT(main_, virInitialize);
  QCHAIN_LIBVIRT(main_, virSetErrorFunc);
  QCHAIN_LIBVIRT(main_, virGetLastError);
  QCHAIN_LIBVIRT(main_, virConnectOpen);
  QCHAIN_LIBVIRT(main_, virConnectClose);
  QCHAIN_LIBVIRT(main_, virConnectGetURI);
  QCHAIN_LIBVIRT(main_, virDomainLookupByID);
  QCHAIN_LIBVIRT(main_, virDomainLookupByName);
  QCHAIN_LIBVIRT(main_, virDomainLookupByUUIDString);
  QCHAIN_LIBVIRT(main_, virDomainFree);
  QCHAIN_LIBVIRT(main_, virDomainGetID);
  QCHAIN_LIBVIRT(main_, virDomainGetName);
  QCHAIN_LIBVIRT(main_, virDomainGetUUIDString);
  QCHAIN_LIBVIRT(main_, virDomainBackupGetXMLDesc);
  QCHAIN_LIBVIRT(qemu_, virDomainQemuMonitorCommand);

#undef QCHAIN_LIBVIRT

 private:
  Api() {
    if (virInitialize() != 0)
      throw LibvirtError(Outcome::Io, LibvirtError::Kind::Other, "libvirt: cannot be initialized");
    virSetErrorFunc(nullptr, [](void*, virErrorPtr) {});  // by default libvirt prints them
  }

  static void* open(const char* library) {
    void* const handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) fail(dlerror());
    return handle;
  }
  template <class Function>
  static Function load(void* library, const char* name) {
    void* const symbol = dlsym(library, name);
    if (symbol == nullptr) fail(dlerror());
    return reinterpret_cast<Function>(symbol);
  }
  [[noreturn]] static void fail(const char* why) {
    throw LibvirtError(Outcome::Io, LibvirtError::Kind::Other,
                       fmt::format("--libvirt needs libvirt's client library (package libvirt0): {}", why));
  }
};

struct Deleter {
  void operator()(virConnectPtr connection) const noexcept { Api::get().virConnectClose(connection); }
  void operator()(virDomainPtr domain) const noexcept { Api::get().virDomainFree(domain); }
  void operator()(char* text) const noexcept { std::free(text); }
};
using Connection = std::unique_ptr<virConnect, Deleter>;
using Domain = std::unique_ptr<virDomain, Deleter>;
using Text = std::unique_ptr<char, Deleter>;

int last_code() {
  const virErrorPtr error = Api::get().virGetLastError();
  return error == nullptr ? VIR_ERR_OK : error->code;
}

LibvirtError::Kind kind_of(int code) {
  switch (code) {
    case VIR_ERR_OPERATION_TIMEOUT:
      return LibvirtError::Kind::Busy;
    case VIR_ERR_INTERNAL_ERROR:  // such as "client socket is closed"
    case VIR_ERR_SYSTEM_ERROR:
    case VIR_ERR_RPC:
      return LibvirtError::Kind::Unreachable;
    default:
      return LibvirtError::Kind::Other;
  }
}

[[noreturn]] void fail(const std::string& what, Outcome outcome = Outcome::Io) {
  const virErrorPtr error = Api::get().virGetLastError();
  const int code = last_code();
  const std::string why =
      error == nullptr || error->message == nullptr ? "no reason given" : escaped(error->message);
  throw LibvirtError(outcome, kind_of(code), fmt::format("{}: {}", what, why));
}

Domain look_up(const Connection& connection, const std::string& name) {
  const Api& api = Api::get();
  int id = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), id);
  if (error == std::errc() && end == name.data() + name.size()) {
    if (Domain domain{api.virDomainLookupByID(connection.get(), id)}) return domain;
  }
  if (Domain domain{api.virDomainLookupByUUIDString(connection.get(), name.c_str())}) return domain;
  if (Domain domain{api.virDomainLookupByName(connection.get(), name.c_str())}) return domain;
  fail(fmt::format("libvirt domain {}", escaped(name)),
       last_code() == VIR_ERR_NO_DOMAIN ? Outcome::Usage : Outcome::Io);
}

}  // namespace

struct LibvirtDomain::Handles {
  Connection connection;
  Domain domain;
  std::string uuid;
  std::string called;  // in messages
};

LibvirtDomain::LibvirtDomain(const std::string& connect_uri, const std::string& domain)
    : handles_(std::make_unique<Handles>()) {
  const Api& api = Api::get();
  handles_->connection.reset(api.virConnectOpen(connect_uri.empty() ? nullptr : connect_uri.c_str()));
  if (!handles_->connection) {
    fail(fmt::format("libvirt {}: cannot connect",
                     connect_uri.empty() ? "(no --connect URI)" : escaped(connect_uri)));
  }
  handles_->domain = look_up(handles_->connection, domain);
  char uuid[VIR_UUID_STRING_BUFLEN] = {};
  if (api.virDomainGetUUIDString(handles_->domain.get(), uuid) != 0) fail("libvirt domain: no UUID");
  handles_->uuid = uuid;
  handles_->called = fmt::format("libvirt domain {}", escaped(name()));
}

LibvirtDomain::~LibvirtDomain() = default;

std::string LibvirtDomain::name() const {
  const char* const name = Api::get().virDomainGetName(handles_->domain.get());
  return name == nullptr ? handles_->uuid : name;
}

std::string LibvirtDomain::uuid() const { return handles_->uuid; }

int LibvirtDomain::run_id() const {
  // A handle keeps the id from when it was looked up.
  const Api& api = Api::get();
  const Domain now{api.virDomainLookupByUUIDString(handles_->connection.get(), handles_->uuid.c_str())};
  if (!now) fail(handles_->called, last_code() == VIR_ERR_NO_DOMAIN ? Outcome::Usage : Outcome::Io);
  return static_cast<int>(api.virDomainGetID(now.get()));
}

bool LibvirtDomain::is_local() const {
  const Text text{Api::get().virConnectGetURI(handles_->connection.get())};
  if (!text) fail(handles_->called);
  const std::string uri = text.get();  // DRIVER[+TRANSPORT]://[USER@][HOST][:PORT]/PATH
  const std::size_t host = uri.find("://");
  return host == std::string::npos || uri.compare(host + 3, 1, "/") == 0;
}

std::optional<std::string> LibvirtDomain::backup_xml() const {
  const Text xml{Api::get().virDomainBackupGetXMLDesc(handles_->domain.get(), 0)};
  if (xml) return std::string(xml.get());
  const int code = last_code();
  if (code == VIR_ERR_NO_DOMAIN_BACKUP || code == VIR_ERR_OPERATION_INVALID)
    return std::nullopt;  // none, or shut off
  fail(fmt::format("{}: cannot ask for its backup job", handles_->called));
}

std::string LibvirtDomain::monitor(const std::string& command) const {
  char* answer = nullptr;
  const int failed =
      Api::get().virDomainQemuMonitorCommand(handles_->domain.get(), command.c_str(), &answer, 0);
  const Text text{answer};
  if (failed != 0 || !text) fail(fmt::format("{}: cannot ask QEMU through its monitor", handles_->called));
  return text.get();
}

}  // namespace qchain
