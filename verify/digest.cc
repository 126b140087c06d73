#include "verify/digest.h"

#include <fmt/format.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <xxhash.h>

#include <algorithm>
#include <vector>

#include "extent/error.h"

namespace qchain {

namespace {

struct AlgorithmInfo {
  Algorithm algorithm;
  const char* name;
  const char* openssl_name;  // nullptr: not in OpenSSL
  std::size_t size;
};

constexpr std::array<AlgorithmInfo, 4> kAlgorithms{{
    {Algorithm::Sha256, "sha256", "SHA2-256", 32},
    {Algorithm::Sha512, "sha512", "SHA2-512", 64},
    {Algorithm::Blake2b512, "blake2b512", "BLAKE2B-512", 64},
    {Algorithm::Xxh3_128, "xxh3-128", nullptr, 16},
}};

const AlgorithmInfo& info(Algorithm algorithm) noexcept {
  return *std::ranges::find(kAlgorithms, algorithm, &AlgorithmInfo::algorithm);
}

void require(bool success) {
  if (success) return;
  throw Error(Outcome::Io, fmt::format("OpenSSL: error {:#x}", ERR_get_error()));
}

// Fetched once: looking up an algorithm by name takes longer than hashing a block.
const EVP_MD* fetched(Algorithm algorithm) {
  struct Free {
    void operator()(EVP_MD* md) const { EVP_MD_free(md); }
  };
  static const std::array<std::unique_ptr<EVP_MD, Free>, kAlgorithms.size()> all = [] {
    std::array<std::unique_ptr<EVP_MD, Free>, kAlgorithms.size()> fetching;
    for (std::size_t i = 0; i < kAlgorithms.size(); ++i) {
      if (kAlgorithms[i].openssl_name == nullptr) continue;
      fetching[i].reset(EVP_MD_fetch(nullptr, kAlgorithms[i].openssl_name, nullptr));
      require(fetching[i] != nullptr);
    }
    return fetching;
  }();
  return all[static_cast<std::size_t>(&info(algorithm) - kAlgorithms.data())].get();
}

}  // namespace

const char* to_string(Algorithm algorithm) noexcept { return info(algorithm).name; }

std::optional<Algorithm> find_algorithm(const std::string& name) noexcept {
  const auto* const found = std::ranges::find(kAlgorithms, name, &AlgorithmInfo::name);
  return found == kAlgorithms.end() ? std::nullopt : std::optional(found->algorithm);
}

Algorithm algorithm_named(const std::string& name) {
  const std::optional<Algorithm> found = find_algorithm(name);
  if (found) return *found;
  throw Error(
      Outcome::Usage,
      fmt::format("unknown digest algorithm \"{}\"; choose sha256, sha512, blake2b512 or xxh3-128", name));
}

bool is_cryptographic(Algorithm algorithm) noexcept { return algorithm != Algorithm::Xxh3_128; }

const char* crypto_version() noexcept { return OpenSSL_version(OPENSSL_VERSION_STRING); }

std::size_t digest_size(Algorithm algorithm) noexcept { return info(algorithm).size; }

std::string hex(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte byte : bytes) text += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
  return text;
}

struct Hasher::State {
  struct FreeEvp {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };
  struct FreeXxh {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<EVP_MD_CTX, FreeEvp> evp;
  std::unique_ptr<XXH3_state_t, FreeXxh> xxh;
};

Hasher::Hasher(Algorithm algorithm) : algorithm_(algorithm), state_(std::make_unique<State>()) {
  if (const EVP_MD* const md = fetched(algorithm)) {
    state_->evp.reset(EVP_MD_CTX_new());
    require(state_->evp != nullptr && EVP_DigestInit_ex(state_->evp.get(), md, nullptr) == 1);
  } else {
    state_->xxh.reset(XXH3_createState());
    require(state_->xxh != nullptr && XXH3_128bits_reset(state_->xxh.get()) == XXH_OK);
  }
}

Hasher::~Hasher() = default;
Hasher::Hasher(Hasher&&) noexcept = default;
Hasher& Hasher::operator=(Hasher&&) noexcept = default;

void Hasher::add(std::span<const std::byte> bytes) {
  if (state_->evp) {
    require(EVP_DigestUpdate(state_->evp.get(), bytes.data(), bytes.size()) == 1);
  } else {
    require(XXH3_128bits_update(state_->xxh.get(), bytes.data(), bytes.size()) == XXH_OK);
  }
}

Digest Hasher::finish() {
  Digest digest(digest_size(algorithm_));
  auto* const out = reinterpret_cast<unsigned char*>(digest.bytes().data());
  if (state_->evp) {
    require(EVP_DigestFinal_ex(state_->evp.get(), out, nullptr) == 1);
    require(EVP_DigestInit_ex(state_->evp.get(), nullptr, nullptr) == 1);
  } else {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_->xxh.get()));
    std::ranges::copy(canonical.digest, out);
    require(XXH3_128bits_reset(state_->xxh.get()) == XXH_OK);
  }
  return digest;
}

Digest Hasher::of(std::span<const std::byte> bytes) {
  add(bytes);
  return finish();
}

namespace {
// Adding many digests to the outer hash at once is faster than one by one.
constexpr std::size_t kZeroBlocks = 512;
}  // namespace

DiskDigest::DiskDigest(Algorithm algorithm) : outer_(algorithm), inner_(algorithm) {
  const Digest zero_block = inner_.of(std::vector<std::byte>(kDigestBlock));
  for (std::size_t i = 0; i < kZeroBlocks; ++i) {
    zero_blocks_.insert(zero_blocks_.end(), zero_block.bytes().begin(), zero_block.bytes().end());
  }
}

void DiskDigest::add_block(const Digest& inner, std::uint64_t length) {
  outer_.add(inner.bytes());
  length_ += length;
}

void DiskDigest::add_zeros(std::uint64_t length) {
  for (std::uint64_t blocks = length / kDigestBlock; blocks > 0;) {
    const std::size_t step = std::min<std::uint64_t>(blocks, kZeroBlocks);
    outer_.add(std::span(zero_blocks_).first(step * zero_blocks_.size() / kZeroBlocks));
    blocks -= step;
  }
  const std::uint64_t rest = length % kDigestBlock;
  if (rest > 0) outer_.add(inner_.of(std::vector<std::byte>(rest)).bytes());
  length_ += length;
}

Digest DiskDigest::finish() {
  std::array<std::byte, sizeof(std::uint64_t)> little_endian{};
  for (std::size_t i = 0; i < little_endian.size(); ++i) {
    little_endian[i] = static_cast<std::byte>(length_ >> (8 * i));
  }
  outer_.add(little_endian);
  length_ = 0;
  return outer_.finish();
}

}  // namespace qchain
