// Ed25519 signatures of manifests, with OpenSSL.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "verify/manifest.h"

namespace qchain {

/// Frees an OpenSSL key.
struct FreeKey {
  void operator()(void* key) const noexcept;
};

/// A public key from a PEM file, such as `openssl pkey -pubout` writes.
class TrustedKey {
 public:
  TrustedKey(std::string path, std::unique_ptr<void, FreeKey> key)
      : path_(std::move(path)), key_(std::move(key)) {}
  /// Whether `signature` is a signature of this manifest with the matching private key.
  bool accepts(const ManifestSignature& signature, const Digest& own_digest) const;
  const std::string& path() const noexcept { return path_; }

 private:
  std::string path_;
  std::unique_ptr<void, FreeKey> key_;
};

/// A private key from a PEM file, such as `openssl genpkey -algorithm ed25519` writes.
class SigningKey {
 public:
  /// Throws Error: Io if the file cannot be read, Usage if it is not such a key.
  explicit SigningKey(const std::string& path);
  ManifestSignature sign(const Digest& own_digest) const;
  /// The public key, which verifies what this signs.
  TrustedKey public_key() const;

 private:
  std::string path_;
  std::unique_ptr<void, FreeKey> key_;
};

/// Throws Error (Usage), naming `path`, if a signature over such a manifest would prove nothing.
void require_signable(const ManifestHeader& header, const std::string& path);

/// Whether `signature` was made with the key that it names; that key need not be trusted.
bool is_own_signature(const ManifestSignature& signature, const Digest& own_digest);

/// All keys from all these files; a file may hold several. Throws like SigningKey.
std::vector<TrustedKey> trusted_keys(const std::vector<std::string>& paths);

}  // namespace qchain
