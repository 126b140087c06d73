#pragma once

#include <optional>
#include <string>

#include "qcow2/layer.h"
#include "verify/digest.h"

namespace qchain {

/// A digest of bytes or of a disk, with its algorithm. What is unknown is a nullopt.
struct ContentDigest {
  Algorithm algorithm = Algorithm::Sha256;
  Digest bytes;

  /// "ALGORITHM:HEX", as manifests, identities and reports have it.
  std::string text() const;
  /// nullopt: `text` is not ALGORITHM:HEX.
  static std::optional<ContentDigest> parse(const std::string& text);
  friend bool operator==(const ContentDigest&, const ContentDigest&) = default;
};

/// Empty: unknown.
std::string text_of(const std::optional<ContentDigest>& digest);

/// The digest of the disk that a layer's header records; nullopt: none. Throws Error (Mismatch) if it is not
/// one.
std::optional<ContentDigest> digest_in_header(const Layer& layer);

}  // namespace qchain
