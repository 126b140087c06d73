#include "verify/signature.h"

#include <fmt/format.h>
#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "extent/error.h"
#include "extent/file.h"

namespace qchain {

namespace {

constexpr std::size_t kMaxKeyFile = 16384;
// Domain separation: a signature of other data must not be valid for a manifest.
constexpr std::string_view kDomain = "qchain manifest 1\n";

struct FreeBio {
  void operator()(BIO* bio) const { BIO_free(bio); }
};
struct FreeContext {
  void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
};

EVP_PKEY* pkey(const std::unique_ptr<void, FreeKey>& key) { return static_cast<EVP_PKEY*>(key.get()); }

std::vector<std::byte> read_key_file(const std::string& path) {
  std::vector<std::byte> bytes(kMaxKeyFile);
  bytes.resize(File::open_to_read(path).read_at_most(HostOffset(0), bytes));
  return bytes;
}

// Whether another PEM object begins in what was not read yet.
bool has_more(BIO* bio) {
  char* rest = nullptr;
  const long length = BIO_get_mem_data(bio, &rest);
  return length > 0 && std::string_view(rest, static_cast<std::size_t>(length)).find("-----BEGIN") !=
                           std::string_view::npos;
}

// The keys in a file, at least one. `read` takes the next key from a BIO; nullptr: it is not one.
template <class Read>
std::vector<std::unique_ptr<void, FreeKey>> load(const std::string& path, const char* what, Read&& read) {
  const std::vector<std::byte> bytes = read_key_file(path);
  const std::unique_ptr<BIO, FreeBio> bio(BIO_new_mem_buf(bytes.data(), static_cast<int>(bytes.size())));
  std::vector<std::unique_ptr<void, FreeKey>> keys;
  do {
    std::unique_ptr<void, FreeKey> key(bio ? read(bio.get()) : nullptr);
    if (!key || EVP_PKEY_get_id(pkey(key)) != EVP_PKEY_ED25519) {
      throw Error(Outcome::Usage, fmt::format("{}: not an Ed25519 {} key in PEM format", path, what));
    }
    keys.push_back(std::move(key));
  } while (has_more(bio.get()));
  return keys;
}

// Never prompts for a passphrase: qchain may run unattended.
int no_passphrase(char*, int, int, void*) { return -1; }

std::vector<unsigned char> message_of(const Digest& own_digest) {
  std::vector<unsigned char> message(kDomain.begin(), kDomain.end());
  for (const std::byte byte : own_digest.bytes()) message.push_back(std::to_integer<unsigned char>(byte));
  return message;
}

bool is_valid(EVP_PKEY* key, const ManifestSignature& signature, const Digest& own_digest) {
  const std::vector<unsigned char> message = message_of(own_digest);
  const std::unique_ptr<EVP_MD_CTX, FreeContext> context(EVP_MD_CTX_new());
  return context && EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, key) == 1 &&
         EVP_DigestVerify(context.get(), reinterpret_cast<const unsigned char*>(signature.signature.data()),
                          signature.signature.size(), message.data(), message.size()) == 1;
}

}  // namespace

void FreeKey::operator()(void* key) const noexcept { EVP_PKEY_free(static_cast<EVP_PKEY*>(key)); }

SigningKey::SigningKey(const std::string& path) : path_(path) {
  auto keys = load(path, "private",
                   [](BIO* bio) { return PEM_read_bio_PrivateKey(bio, nullptr, no_passphrase, nullptr); });
  if (keys.size() != 1) {
    throw Error(Outcome::Usage, fmt::format("{}: has {} private keys: which one?", path, keys.size()));
  }
  key_ = std::move(keys.front());
}

TrustedKey SigningKey::public_key() const {
  ManifestSignature signature;
  auto* const raw = reinterpret_cast<unsigned char*>(signature.key.data());
  std::size_t length = signature.key.size();
  std::unique_ptr<void, FreeKey> key;
  if (EVP_PKEY_get_raw_public_key(pkey(key_), raw, &length) == 1) {
    key.reset(EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, raw, length));
  }
  if (!key) throw Error(Outcome::Io, fmt::format("{}: OpenSSL: cannot derive the public key", path_));
  return {path_, std::move(key)};
}

ManifestSignature SigningKey::sign(const Digest& own_digest) const {
  ManifestSignature signature;
  const std::vector<unsigned char> message = message_of(own_digest);
  const std::unique_ptr<EVP_MD_CTX, FreeContext> context(EVP_MD_CTX_new());
  std::size_t key_length = signature.key.size();
  std::size_t length = signature.signature.size();
  const bool done =
      context &&
      EVP_PKEY_get_raw_public_key(pkey(key_), reinterpret_cast<unsigned char*>(signature.key.data()),
                                  &key_length) == 1 &&
      EVP_DigestSignInit(context.get(), nullptr, nullptr, nullptr, pkey(key_)) == 1 &&
      EVP_DigestSign(context.get(), reinterpret_cast<unsigned char*>(signature.signature.data()), &length,
                     message.data(), message.size()) == 1;
  if (!done) throw Error(Outcome::Io, "OpenSSL: cannot make an Ed25519 signature");
  return signature;
}

bool TrustedKey::accepts(const ManifestSignature& signature, const Digest& own_digest) const {
  return is_valid(pkey(key_), signature, own_digest);
}

void require_signable(const ManifestHeader& header, const std::string& path) {
  if (is_cryptographic(header.algorithm)) return;
  throw Error(Outcome::Usage,
              fmt::format("{}: its digests are {}, which do not detect tampering: a signature "
                          "over them proves nothing",
                          path, to_string(header.algorithm)));
}

bool is_own_signature(const ManifestSignature& signature, const Digest& own_digest) {
  const std::unique_ptr<void, FreeKey> key(EVP_PKEY_new_raw_public_key(
      EVP_PKEY_ED25519, nullptr, reinterpret_cast<const unsigned char*>(signature.key.data()),
      signature.key.size()));
  return key && is_valid(pkey(key), signature, own_digest);
}

std::vector<TrustedKey> trusted_keys(const std::vector<std::string>& paths) {
  std::vector<TrustedKey> keys;
  for (const std::string& path : paths) {
    for (auto& key : load(path, "public", [](BIO* bio) {
           return PEM_read_bio_PUBKEY(bio, nullptr, no_passphrase, nullptr);
         })) {
      keys.emplace_back(path, std::move(key));
    }
  }
  return keys;
}

}  // namespace qchain
