// The kernels by themselves, each beside what the library under it, or the obvious way, can do.
#include <benchmark/benchmark.h>
#include <openssl/evp.h>
#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "extent/extent.h"
#include "extent/zero.h"
#include "qcow2/entry.h"
#include "verify/digest.h"

namespace qchain {
namespace {

using Bytes = std::vector<std::byte>;

constexpr std::int64_t kBlock = std::int64_t{64} << 10;
constexpr std::int64_t kLarge = std::int64_t{2} << 20;
constexpr std::uint64_t kMillion = 1'000'000;

Bytes noise(std::int64_t size) {
  std::mt19937_64 random(1);
  Bytes bytes(static_cast<std::size_t>(size));
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

void count_bytes(benchmark::State& state) { state.SetBytesProcessed(state.iterations() * state.range(0)); }

// -- zeros: range(1) is the last byte, which decides ---------------------------------------------------

Bytes zeros_but_for_the_end(const benchmark::State& state) {
  Bytes bytes(static_cast<std::size_t>(state.range(0)));
  bytes.back() = static_cast<std::byte>(state.range(1));
  return bytes;
}

void zero_test(benchmark::State& state) {
  const Bytes bytes = zeros_but_for_the_end(state);
  for (auto _ : state) benchmark::DoNotOptimize(is_zero(bytes));
  count_bytes(state);
}

void zero_test_by_memcmp(benchmark::State& state) {
  const Bytes bytes = zeros_but_for_the_end(state);
  for (auto _ : state) {
    const std::byte* data = bytes.data();
    benchmark::DoNotOptimize(data);
    benchmark::DoNotOptimize(data[0] == std::byte{0} && std::memcmp(data, data + 1, bytes.size() - 1) == 0);
  }
  count_bytes(state);
}

BENCHMARK(zero_test)->ArgsProduct({{kBlock, kLarge}, {0, 1}});
BENCHMARK(zero_test_by_memcmp)->ArgsProduct({{kBlock, kLarge}, {0, 1}});

// -- digests of blocks -------------------------------------------------------------------------------------

void digest_of_block(benchmark::State& state, Algorithm algorithm) {
  const Bytes block = noise(state.range(0));
  Hasher hasher(algorithm);
  for (auto _ : state) benchmark::DoNotOptimize(hasher.of(block));
  count_bytes(state);
}

void sha256_by_openssl(benchmark::State& state) {
  const Bytes block = noise(state.range(0));
  EVP_MD* md = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  unsigned char digest[EVP_MAX_MD_SIZE];
  for (auto _ : state) {
    EVP_Digest(block.data(), block.size(), digest, nullptr, md, nullptr);
    benchmark::DoNotOptimize(digest);
  }
  EVP_MD_free(md);
  count_bytes(state);
}

void xxh3_128_by_xxhash(benchmark::State& state) {
  const Bytes block = noise(state.range(0));
  for (auto _ : state) benchmark::DoNotOptimize(XXH3_128bits(block.data(), block.size()));
  count_bytes(state);
}

BENCHMARK_CAPTURE(digest_of_block, sha256, Algorithm::Sha256)->Arg(kBlock);
BENCHMARK(sha256_by_openssl)->Arg(kBlock);
BENCHMARK_CAPTURE(digest_of_block, xxh3_128, Algorithm::Xxh3_128)->Arg(kBlock);
BENCHMARK(xxh3_128_by_xxhash)->Arg(kBlock);

void digest_of_a_disk_of_zeros(benchmark::State& state) {
  for (auto _ : state) {
    DiskDigest disk(Algorithm::Sha256);
    disk.add_zeros(static_cast<std::uint64_t>(state.range(0)));
    benchmark::DoNotOptimize(disk.finish());
  }
  count_bytes(state);
}

BENCHMARK(digest_of_a_disk_of_zeros)->Arg(std::int64_t{16} << 30)->Unit(benchmark::kMillisecond);

// -- tables
// --------------------------------------------------------------------------------------------------

// A table of 64 KiB whose every second entry is a cluster of data.
void l2_decode(benchmark::State& state) {
  const Geometry geometry(16, state.range(0) != 0, std::uint64_t{1} << 40);
  std::vector<RawL2Entry> table(geometry.l2_entries());
  for (std::size_t i = 0; i < table.size(); i += 2) {
    L2Entry entry{.storage = Storage::Plain, .host = HostOffset(i << 16), .copied = true, .allocated = ~0U};
    table[i] = encode_l2(entry, geometry);
  }
  for (auto _ : state) {
    for (const RawL2Entry& raw : table) {
      benchmark::DoNotOptimize(decode_l2(raw.entry, raw.bitmap, geometry, 3, false));
    }
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(table.size()));
}

BENCHMARK(l2_decode)->ArgName("extended")->Arg(0)->Arg(1);

// -- the algebra, over a million extents
// ---------------------------------------------------------------------

// Without a vector, so that the stream costs nothing.
ExtentSource million(std::uint64_t length, std::uint64_t shift) {
  return [=, i = std::uint64_t{0}]() mutable -> std::optional<Extent> {
    if (i == kMillion) return std::nullopt;
    const std::uint64_t begin = i == 0 ? 0 : i * length + shift;
    ++i;
    const std::uint64_t end = i * length + (i == kMillion ? 0 : shift);
    return Extent{{GuestOffset(begin), GuestOffset(end)}, static_cast<Kind>(i % 3)};
  };
}

void drain(benchmark::State& state, const ExtentSource& source) {
  std::uint64_t count = 0;
  while (const std::optional<Extent> extent = source()) ++count;
  benchmark::DoNotOptimize(count);
  state.SetItemsProcessed(state.items_processed() + static_cast<std::int64_t>(kMillion));
}

void extents_normalised(benchmark::State& state) {
  for (auto _ : state) drain(state, normalise(million(96 << 10, 512), 64 << 10, Position::Overlay));
}

void extents_zipped(benchmark::State& state) {
  for (auto _ : state) drain(state, zip(million(96 << 10, 0), million(96 << 10, 4096), either_data));
}

void extents_clipped(benchmark::State& state) {
  const GuestRange most = guest_range(1 << 20, kMillion * (64 << 10));
  for (auto _ : state) drain(state, clip(million(96 << 10, 0), most));
}

void extents_merged(benchmark::State& state) {
  for (auto _ : state) {
    benchmark::DoNotOptimize(collect(million(96 << 10, 0)));
    state.SetItemsProcessed(state.items_processed() + static_cast<std::int64_t>(kMillion));
  }
}

BENCHMARK(extents_normalised)->Unit(benchmark::kMillisecond);
BENCHMARK(extents_zipped)->Unit(benchmark::kMillisecond);
BENCHMARK(extents_clipped)->Unit(benchmark::kMillisecond);
BENCHMARK(extents_merged)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace qchain
