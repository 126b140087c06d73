#include "cli/proof_log.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <cerrno>
#include <filesystem>
#include <string_view>

#include "extent/file.h"

namespace qchain {

namespace {

constexpr std::size_t kMaxLine = 4096;
constexpr mode_t kMode = 0666;  // before the umask

// Next to the image itself, with symbolic links resolved.
std::string log_path(const std::string& image) {
  std::error_code error;
  const std::filesystem::path real = std::filesystem::canonical(image, error);
  return (error ? image : real.string()) + ".proofs";
}

}  // namespace

void append_proof(const std::string& image, Outcome outcome, const Json& report) {
  Json line;
  line["time"] = report["time"];
  line["outcome"] = to_string(outcome);
  line["tool"] = "qchain " QCHAIN_VERSION;
  for (const char* const field :
       {"mode", "selection", "root", "read_bytes", "different_bytes", "unread_bytes"}) {
    line[field] = report[field];
  }
  line["layers"] = report["layers"].size();
  const Json& layers = report["layers"];
  line["manifest"] =
      !layers.empty() && layers[0].contains("manifest") ? layers[0]["manifest"]["own_digest"] : Json(nullptr);
  line["against"] = report["against"];
  const std::string text = line.dump() + '\n';
  const std::string path = log_path(image);
  const int descriptor =
      open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, kMode);
  if (descriptor < 0) throw system_error(fmt::format("{}: cannot open", path), errno);
  const File log(descriptor, path);
  if (!log.is_regular()) throw Error(Outcome::Io, fmt::format("{}: not a regular file", path));
  log.append(std::as_bytes(std::span(text)));
  log.sync();
}

std::optional<Json> last_proof(const std::string& image) {
  try {
    const File log = File::open_to_read(log_path(image));
    const std::uint64_t size = log.size();
    std::string tail(std::min<std::uint64_t>(kMaxLine, size), '\0');
    log.read(HostOffset(size - tail.size()), std::as_writable_bytes(std::span(tail)));
    if (tail.empty() || tail.back() != '\n') return std::nullopt;
    tail.pop_back();
    Json line = Json::parse(tail.substr(tail.rfind('\n') + 1), nullptr, false);
    if (!line.is_object()) return std::nullopt;
    return line;
  } catch (const Error&) {
    return std::nullopt;
  }
}

}  // namespace qchain
