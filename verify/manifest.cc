#include "verify/manifest.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "extent/cancellation.h"
#include "extent/error.h"
#include "qcow2/identity.h"

namespace qchain {

namespace {

constexpr std::array<char, 8> kMagicBytes{'Q', 'C', 'H', 'N', 'M', 'F', '0', '1'};
constexpr std::array<char, 8> kSignatureMagic{'Q', 'C', 'H', 'N', 'S', 'G', '0', '1'};
constexpr std::size_t kMaxHeaderJson = 4096;
constexpr std::uint64_t kMaxLength = std::uint64_t{1} << 62;
constexpr std::uint8_t kEnd = 255;
constexpr std::size_t kFlushBytes = std::size_t{256} << 10;
constexpr std::size_t kReadBytes = std::size_t{16} << 10;  // a chain has one reader per layer

std::array<std::byte, 8> little_endian(std::uint64_t value) {
  std::array<std::byte, 8> bytes{};
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(value >> (8 * i));
  return bytes;
}

std::uint64_t from_little_endian(std::span<const std::byte> bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = bytes.size(); i > 0; --i) {
    value = value << 8 | std::to_integer<std::uint64_t>(bytes[i - 1]);
  }
  return value;
}

constexpr std::array<const char*, 3> kOrigins{"pull", "seal", "restore"};

Origin origin_named(const std::string& name) {
  const auto found = std::ranges::find(kOrigins, name);
  if (found == kOrigins.end()) throw Error(Outcome::BadManifest, "its header has an unknown origin");
  return static_cast<Origin>(found - kOrigins.begin());
}

std::string encode_header_json(const ManifestHeader& header) {
  nlohmann::ordered_json json;
  json["algorithm"] = to_string(header.algorithm);
  json["block_size"] = kDigestBlock;
  json["length"] = header.length;
  json["overlay"] = header.overlay;
  const auto put = [&](const char* name, const std::string& text) {
    if (!text.empty()) json[name] = text;
  };
  put("layer", header.layer_id);
  put("parent", header.parent_id);
  put("parent_root", text_of(header.parent_root));
  put("checkpoint", header.checkpoint);
  put("since", header.since);
  json["origin"] = to_string(header.origin);
  put("time", header.time);
  put("sealed_time", header.sealed_time);
  put("file", header.file);
  put("export", header.export_name);
  put("domain", header.domain);
  put("target", header.target);
  if (header.is_resealed) json["resealed"] = true;
  put("accepted", text_of(header.accepted));
  if (header.is_signed_unproven) json["signed_unproven"] = true;
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// An unsigned integer: nlohmann would convert 1.5 to 1, and 1e300 to anything.
std::uint64_t number_of(const nlohmann::json& json, const char* name) {
  const nlohmann::json& value = json.at(name);
  if (!value.is_number_unsigned()) {
    throw Error(Outcome::BadManifest,
                fmt::format("field \"{}\" of its header is not an unsigned integer", name));
  }
  return value.get<std::uint64_t>();
}

std::optional<ContentDigest> digest_of(const nlohmann::json& json, const char* name) {
  const std::string text = json.value(name, std::string());
  if (text.empty()) return std::nullopt;
  std::optional<ContentDigest> digest = ContentDigest::parse(text);
  if (!digest) {
    throw Error(Outcome::BadManifest, fmt::format("field \"{}\" of its header is not a digest", name));
  }
  return digest;
}

// Throws nlohmann's exceptions, and Error for an unknown algorithm; the caller translates both.
ManifestHeader decode_header_json(std::string_view text) {
  const nlohmann::json json = nlohmann::json::parse(text);
  ManifestHeader header;
  header.algorithm = algorithm_named(json.at("algorithm").get<std::string>());
  header.length = number_of(json, "length");
  header.overlay = json.at("overlay").get<bool>();
  header.layer_id = json.value("layer", std::string());
  header.parent_id = json.value("parent", std::string());
  header.parent_root = digest_of(json, "parent_root");
  header.checkpoint = json.value("checkpoint", std::string());
  header.since = json.value("since", std::string());
  header.origin = origin_named(json.at("origin").get<std::string>());
  header.time = json.value("time", std::string());
  header.sealed_time = json.value("sealed_time", std::string());
  header.file = json.value("file", std::string());
  header.export_name = json.value("export", std::string());
  header.domain = json.value("domain", std::string());
  header.target = json.value("target", std::string());
  header.is_resealed = json.value("resealed", false);
  header.accepted = digest_of(json, "accepted");
  header.is_signed_unproven = json.value("signed_unproven", false);
  if (number_of(json, "block_size") != kDigestBlock || header.length > kMaxLength ||
      (!header.layer_id.empty() && !is_uuid(header.layer_id))) {
    throw Error(Outcome::BadManifest, "its header has invalid values");
  }
  return header;
}

}  // namespace

const char* to_string(Origin origin) noexcept { return kOrigins[static_cast<std::size_t>(origin)]; }

std::uint64_t ManifestHeader::block_length(std::uint64_t index) const {
  return std::min(kDigestBlock, length - index * kDigestBlock);
}

bool manifest_exists(const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) == 0) return true;
  if (errno == ENOENT || errno == ENOTDIR) return false;
  throw system_error(fmt::format("{}: cannot stat", path), errno);
}

std::string manifest_path(const std::string& layer) { return layer + ".manifest"; }

std::string manifest_path(const std::string& layer, const std::string& id) {
  return fmt::format("{}.{}", manifest_path(layer), id);
}

std::string find_manifest(const std::string& layer, const std::string& id) {
  std::string usual = manifest_path(layer);
  if (id.empty()) return usual;
  std::string by_id = manifest_path(layer, id);
  if (!manifest_exists(by_id)) return usual;
  try {
    if (ManifestReader(usual).header().layer_id == id) return usual;
  } catch (const Error&) {  // missing or unreadable
  }
  return by_id;
}

ManifestWriter::ManifestWriter(const File& file, const ManifestHeader& header)
    : file_(file), header_(header), self_(Algorithm::Sha256) {
  const std::string json = encode_header_json(header);
  put(std::as_bytes(std::span(kMagicBytes)));
  const auto length = little_endian(json.size());
  put(std::span(length).first(4));
  put(std::as_bytes(std::span(json)));
}

void ManifestWriter::put(std::span<const std::byte> bytes) {
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  if (buffer_.size() >= kFlushBytes) flush();
}

void ManifestWriter::flush() {
  self_.add(buffer_);
  file_.append(buffer_);
  buffer_.clear();
}

void ManifestWriter::flush_record() {
  if (record_.count == 0) return;
  put(std::array{static_cast<std::byte>(record_.held)});
  put(little_endian(record_.first));
  put(little_endian(record_.count));
  for (std::size_t i = 0; i < record_.whole.size(); ++i) {
    put(record_.whole[i].bytes());
    if (record_.held == Held::Part) put(record_.part[i].bytes());
  }
  record_ = {};
}

void ManifestWriter::add(Held held, std::uint64_t block, const Digest& whole, const Digest& part) {
  const bool continues =
      record_.count > 0 && record_.held == held && record_.end() == block && record_.count < kMaxRecordBlocks;
  if (!continues) {
    flush_record();
    record_.held = held;
    record_.first = block;
  }
  ++record_.count;
  record_.whole.push_back(whole);
  if (held == Held::Part) record_.part.push_back(part);
}

void ManifestWriter::add_zeros(std::uint64_t first, std::uint64_t count) {
  if (record_.count == 0 || record_.held != Held::Zeros || record_.end() != first) {
    flush_record();
    record_.held = Held::Zeros;
    record_.first = first;
  }
  record_.count += count;
}

Digest ManifestWriter::finish(const std::optional<Digest>& root) {
  flush_record();
  put(std::array{std::byte{kEnd}});
  put(little_endian(header_.blocks()));
  put(little_endian(0));
  put(std::array{static_cast<std::byte>(root ? 1 : 0)});
  put(root ? root->bytes() : Digest(digest_size(header_.algorithm)).bytes());
  flush();
  const Digest own = self_.finish();
  file_.append(own.bytes());
  return own;
}

void ManifestWriter::sign(const ManifestSignature& signature) {
  buffer_.clear();
  put(std::as_bytes(std::span(kSignatureMagic)));
  put(signature.key);
  put(signature.signature);
  file_.append(std::exchange(buffer_, {}));
}

ManifestReader::ManifestReader(const std::string& path)
    : ManifestReader(std::make_shared<const File>(File::open_to_read(path))) {}

ManifestReader::ManifestReader(std::shared_ptr<const File> file, std::optional<Digest> own_digest)
    : file_(std::move(file)), expected_(own_digest), self_(Algorithm::Sha256) {
  read_header();
}

void ManifestReader::bad(const std::string& what) const {
  throw Error(Outcome::BadManifest,
              fmt::format("{}: bad manifest at offset {:#x}: {}", path(), offset_ + used_, what));
}

// The next bytes, which stay valid until the next call.
std::span<const std::byte> ManifestReader::take(std::size_t length) {
  if (buffer_.size() - used_ < length) {
    buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(used_));
    offset_ += std::exchange(used_, 0);
    const std::size_t held = buffer_.size();
    buffer_.resize(std::max(kReadBytes, length));
    buffer_.resize(held + file_->read_at_most(HostOffset(offset_ + held), std::span(buffer_).subspan(held)));
    if (buffer_.size() < length) bad("unexpected end of file");
  }
  const std::span<const std::byte> taken = std::span(buffer_).subspan(used_, length);
  used_ += length;
  return taken;
}

Digest ManifestReader::take_digest() {
  Digest digest(digest_size(header_.algorithm));
  const std::span<const std::byte> bytes = take(digest.bytes().size());
  self_.add(bytes);
  std::ranges::copy(bytes, digest.bytes().begin());
  return digest;
}

void ManifestReader::read_header() {
  constexpr std::size_t kLengthBytes = 4;
  const std::span<const std::byte> fixed = take(kMagicBytes.size() + kLengthBytes);
  if (std::memcmp(fixed.data(), kMagicBytes.data(), kMagicBytes.size()) != 0) bad("magic number not found");
  self_.add(fixed);
  const std::uint64_t length = from_little_endian(fixed.subspan(kMagicBytes.size()));
  if (length < 1 || length > kMaxHeaderJson) bad(fmt::format("invalid header length {}", length));
  const std::span<const std::byte> json = take(length);
  self_.add(json);
  try {
    header_ = decode_header_json({reinterpret_cast<const char*>(json.data()), json.size()});
  } catch (const std::exception& error) {  // nlohmann's or Error
    bad(error.what());
  }
}

// A header is read even after a cancellation: what reads only headers takes any failure as an answer.
bool ManifestReader::next(ManifestRecord& record) {
  throw_if_cancelled();
  constexpr std::size_t kFixed = 1 + 8 + 8;
  const std::span<const std::byte> fixed = take(kFixed);
  self_.add(fixed);
  const auto kind = std::to_integer<std::uint8_t>(fixed[0]);
  record.first = from_little_endian(fixed.subspan(1, 8));
  record.count = from_little_endian(fixed.subspan(9, 8));
  record.whole.clear();
  record.part.clear();
  if (kind == kEnd) {
    read_end(record.first, record.count);
    return false;
  }
  if (kind < static_cast<std::uint8_t>(Held::Data) || kind > static_cast<std::uint8_t>(Held::Part)) {
    bad(fmt::format("invalid record kind {}", kind));
  }
  record.held = static_cast<Held>(kind);
  const std::uint64_t blocks = header_.blocks();
  const std::uint64_t most = record.held == Held::Zeros ? blocks : kMaxRecordBlocks;
  if (record.first < next_block_ || record.count < 1 || record.count > most || record.first > blocks ||
      record.count > blocks - record.first) {
    bad(fmt::format("invalid record: {} blocks at block {}, expected at block {} or later, of {}",
                    record.count, record.first, next_block_, blocks));
  }
  next_block_ = record.end();
  for (std::uint64_t i = 0; record.held != Held::Zeros && i < record.count; ++i) {
    record.whole.push_back(take_digest());
    if (record.held == Held::Part) record.part.push_back(take_digest());
  }
  return true;
}

void ManifestReader::read_end(std::uint64_t first, std::uint64_t count) {
  if (first != header_.blocks() || count != 0) bad("its end does not match its header");
  const std::span<const std::byte> known = take(1);
  self_.add(known);
  const auto flag = std::to_integer<unsigned>(known[0]);
  const Digest root = take_digest();
  if (flag > 1) bad("invalid flag for the root");
  if (flag == 1) root_ = root;
  own_digest_ = self_.finish();
  if (!std::ranges::equal(take(own_digest_.bytes().size()), own_digest_.bytes())) {
    bad("its own digest does not match: it was modified or damaged");
  }
  if (expected_ && own_digest_ != *expected_) bad("it was modified while it was in use");
  if (offset_ + used_ != file_->size()) read_signature();
  if (offset_ + used_ != file_->size()) bad("trailing data");
}

void ManifestReader::read_signature() {
  if (!std::ranges::equal(take(kSignatureMagic.size()), std::as_bytes(std::span(kSignatureMagic)))) {
    bad("trailing data that is not a signature");
  }
  signature_.emplace();
  std::ranges::copy(take(signature_->key.size()), signature_->key.begin());
  std::ranges::copy(take(signature_->signature.size()), signature_->signature.begin());
}

Manifest::Manifest(std::shared_ptr<const File> file) : file_(std::move(file)) {
  ManifestReader reader(file_);
  ManifestRecord record;
  while (reader.next(record)) {
  }
  summary_ = {reader.header(), reader.root(), reader.own_digest(), reader.signature()};
}

Manifest::Manifest(const std::string& path)
    : Manifest(std::make_shared<const File>(File::open_to_read(path))) {}

std::optional<ContentDigest> ManifestSummary::disk_digest() const {
  return root ? std::optional(ContentDigest{header.algorithm, *root}) : std::nullopt;
}

}  // namespace qchain
