#include "cli/api/proof_log.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>

#include "cli/api/text.h"
#include "extent/cancellation.h"
#include "extent/file.h"

namespace qchain {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kMaxLine = 4096;
constexpr mode_t kMode = 0666;  // less the umask

// Beside the file itself, also where a link leads to it.
std::string log_path(const std::string& image) {
  std::error_code error;
  const std::filesystem::path real = std::filesystem::canonical(image, error);
  return (error ? image : real.string()) + ".proofs";
}

// Fields that are not known are null.
std::string encode(const LoggedProof& proof) {
  const auto known = [](const std::string& text) {
    return text.empty() ? Json(nullptr) : Json(escaped(text));
  };
  Json line;
  line["time"] = known(proof.time);
  line["outcome"] = known(proof.outcome);
  line["tool"] = known(proof.tool);
  line["mode"] = known(proof.mode);
  line["selection"] = {
      {"part", proof.part}, {"parts", proof.parts}, {"only_earlier_findings", proof.is_of_earlier_findings}};
  line["root"] = known(proof.root);
  line["read_bytes"] = proof.read_bytes;
  line["different_bytes"] = proof.different_bytes;
  line["unread_bytes"] = proof.unread_bytes;
  line["layers"] = proof.layers;
  line["manifest"] = known(proof.manifest);
  line["against"] = known(proof.against);
  return line.dump();
}

// Of a line that anybody may have written; a field that cannot be understood is one that is not there.
class ProofLine {
 public:
  explicit ProofLine(const Json& object) : object_(object) {}

  std::string text(const char* field) const {
    const auto found = object_.find(field);
    return found != object_.end() && found->is_string() ? found->get<std::string>() : std::string();
  }
  std::uint64_t number(const char* field, std::uint64_t otherwise) const {
    const auto found = object_.find(field);
    return found != object_.end() && found->is_number_unsigned() ? found->get<std::uint64_t>() : otherwise;
  }
  bool is_set(const char* field) const {
    const auto found = object_.find(field);
    return found != object_.end() && *found == Json(true);
  }
  ProofLine object(const char* field) const {
    static const Json kNone = Json::object();
    const auto found = object_.find(field);
    return ProofLine(found != object_.end() && found->is_object() ? *found : kNone);
  }

 private:
  const Json& object_;
};

std::optional<LoggedProof> decode(const std::string& line) {
  const Json json = Json::parse(line, nullptr, false);
  if (!json.is_object()) return std::nullopt;
  const ProofLine fields(json);
  const ProofLine selection = fields.object("selection");
  LoggedProof proof;
  proof.time = fields.text("time");
  proof.outcome = fields.text("outcome");
  proof.tool = fields.text("tool");
  proof.mode = fields.text("mode");
  proof.part = selection.number("part", 1);
  proof.parts = selection.number("parts", 1);
  proof.is_of_earlier_findings = selection.is_set("only_earlier_findings");
  proof.root = fields.text("root");
  proof.read_bytes = fields.number("read_bytes", 0);
  proof.different_bytes = fields.number("different_bytes", 0);
  proof.unread_bytes = fields.number("unread_bytes", 0);
  proof.layers = fields.number("layers", 0);
  proof.manifest = fields.text("manifest");
  proof.against = fields.text("against");
  return proof;
}

}  // namespace

void append_proof(const std::string& image, const LoggedProof& proof) {
  const std::string text = encode(proof) + '\n';
  const std::string path = log_path(image);
  const int descriptor =
      open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, kMode);
  if (descriptor < 0) throw system_error(fmt::format("{}: cannot open", path), errno);
  const File log(descriptor, path);
  if (!log.is_regular()) throw Error(Outcome::Io, fmt::format("{}: not a regular file", path));
  log.append(std::as_bytes(std::span(text)));
  log.sync();
}

std::optional<LoggedProof> last_proof(const std::string& image) {
  try {
    const File log = File::open_to_read(log_path(image));
    const std::uint64_t size = log.size();
    std::string tail(std::min<std::uint64_t>(kMaxLine, size), '\0');
    log.read(HostOffset(size - tail.size()), std::as_writable_bytes(std::span(tail)));
    if (tail.empty() || tail.back() != '\n') return std::nullopt;
    tail.pop_back();
    return decode(tail.substr(tail.rfind('\n') + 1));
  } catch (const Error& error) {
    if (is_cancelled(error)) throw;
    return std::nullopt;
  }
}

}  // namespace qchain
