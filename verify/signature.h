// Ed25519 signatures over manifests, by OpenSSL.
#pragma once

#include <memory>
#include <string>

#include "verify/manifest.h"

namespace qchain {

/// Frees a key of OpenSSL.
struct FreeKey {
  void operator()(void* key) const noexcept;
};

/// A private key, from a PEM file as `openssl genpkey -algorithm ed25519` writes it.
class SigningKey {
 public:
  /// Throws Error: Io where the file cannot be read, Usage where it holds no such key.
  explicit SigningKey(const std::string& path);
  ManifestSignature sign(const Digest& own_digest) const;

 private:
  std::unique_ptr<void, FreeKey> key_;
};

/// Whether `signature` was made with the key that it names. Who has that key is another question.
bool is_own_signature(const ManifestSignature& signature, const Digest& own_digest);

/// A public key, from a PEM file as `openssl pkey -pubout` writes it.
class TrustedKey {
 public:
  /// Throws as SigningKey does.
  explicit TrustedKey(const std::string& path);
  /// Whether `signature` was made with the key that belongs to this one, over this manifest.
  bool accepts(const ManifestSignature& signature, const Digest& own_digest) const;
  const std::string& path() const noexcept { return path_; }

 private:
  std::string path_;
  std::unique_ptr<void, FreeKey> key_;
};

/// Reads the keys of all these files. Throws as SigningKey does.
std::vector<TrustedKey> trusted_keys(const std::vector<std::string>& paths);

}  // namespace qchain
