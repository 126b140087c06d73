#include "qcow2/compression.h"

#include <fmt/format.h>
#include <zlib.h>
#include <zstd.h>

#include <memory>

namespace qchain {

namespace {

std::string inflate_cluster(std::span<const std::byte> stream, std::span<std::byte> cluster) {
  constexpr int kRawMaxWindow = -15;
  z_stream z{};
  // zlib's next_in is not const, but it is only read.
  z.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(stream.data()));
  z.avail_in = static_cast<uInt>(stream.size());
  z.next_out = reinterpret_cast<Bytef*>(cluster.data());
  z.avail_out = static_cast<uInt>(cluster.size());
  if (inflateInit2(&z, kRawMaxWindow) != Z_OK) return "zlib cannot be initialised";
  const int result = inflate(&z, Z_FINISH);
  const std::string words = z.msg != nullptr ? z.msg : "it ends early";
  inflateEnd(&z);
  // QEMU takes a full cluster as success, whether or not the stream has more to say.
  const bool filled = z.avail_out == 0 && (result == Z_STREAM_END || result == Z_BUF_ERROR);
  if (filled) return {};
  return fmt::format("deflate stream: {} after {} of {} bytes", words,
                     cluster.size() - z.avail_out, cluster.size());
}

std::string unzstd_cluster(std::span<const std::byte> stream, std::span<std::byte> cluster) {
  struct Free {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };
  thread_local const std::unique_ptr<ZSTD_DCtx, Free> context(ZSTD_createDCtx());
  if (!context) return "zstd cannot be initialised";
  ZSTD_DCtx_reset(context.get(), ZSTD_reset_session_only);
  ZSTD_inBuffer in{stream.data(), stream.size(), 0};
  ZSTD_outBuffer out{cluster.data(), cluster.size(), 0};
  std::size_t left = 1;  // 0 at the end of a frame
  while (out.pos < out.size || left != 0) {
    const std::size_t before = in.pos + out.pos;
    left = ZSTD_decompressStream(context.get(), &out, &in);
    if (ZSTD_isError(left) != 0) {
      return fmt::format("zstd stream: {} after {} of {} bytes", ZSTD_getErrorName(left), out.pos,
                         out.size);
    }
    if (in.pos + out.pos == before) {
      return fmt::format("zstd stream: {} after {} of {} bytes",
                         out.pos == out.size ? "longer than a cluster" : "it ends early", out.pos,
                         out.size);
    }
  }
  return {};
}

}  // namespace

std::string decompress(Compression type, std::span<const std::byte> stream,
                       std::span<std::byte> cluster) {
  return type == Compression::Zstd ? unzstd_cluster(stream, cluster)
                                   : inflate_cluster(stream, cluster);
}

}  // namespace qchain
