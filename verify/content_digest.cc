#include "verify/content_digest.h"

#include <fmt/format.h>

#include "extent/error.h"

namespace qchain {

namespace {

std::optional<unsigned> nibble(char digit) {
  if (digit >= '0' && digit <= '9') return static_cast<unsigned>(digit - '0');
  if (digit >= 'a' && digit <= 'f') return static_cast<unsigned>(digit - 'a' + 10);
  return std::nullopt;
}

}  // namespace

std::string ContentDigest::text() const { return fmt::format("{}:{}", to_string(algorithm), bytes.hex()); }

std::optional<ContentDigest> ContentDigest::parse(const std::string& text) {
  const std::size_t colon = text.find(':');
  const std::optional<Algorithm> algorithm = find_algorithm(text.substr(0, colon));
  if (colon == std::string::npos || !algorithm) return std::nullopt;
  ContentDigest digest{*algorithm, Digest(digest_size(*algorithm))};
  const std::string hex = text.substr(colon + 1);
  if (hex.size() != 2 * digest.bytes.bytes().size()) return std::nullopt;
  for (std::size_t i = 0; i < hex.size(); i += 2) {
    const auto high = nibble(hex[i]);
    const auto low = nibble(hex[i + 1]);
    if (!high || !low) return std::nullopt;
    digest.bytes.bytes()[i / 2] = static_cast<std::byte>(*high << 4 | *low);
  }
  return digest;
}

std::string text_of(const std::optional<ContentDigest>& digest) {
  return digest ? digest->text() : std::string();
}

std::optional<ContentDigest> digest_in_header(const Layer& layer) {
  const std::optional<Identity> identity = layer.identity();
  if (!identity || identity->digest.empty()) return std::nullopt;
  std::optional<ContentDigest> digest = ContentDigest::parse(identity->digest);
  if (!digest) {
    throw Error(Outcome::Mismatch, fmt::format("{}: the digest in its header, \"{}\", is invalid",
                                               layer.path(), identity->digest));
  }
  return digest;
}

}  // namespace qchain
