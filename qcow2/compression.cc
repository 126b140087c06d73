#include "qcow2/compression.h"

#include <fmt/format.h>
#include <zlib.h>
#include <zstd.h>

#include <charconv>
#include <memory>

#include "extent/error.h"

namespace qchain {

namespace {

// QEMU writes deflate with this window size, and older readers of the format rely on it.
constexpr int kWrittenWindow = -12;
constexpr int kMemoryLevel = 9;
constexpr int kMaxZlibLevel = 9;

Decoded inflate_cluster(std::span<const std::byte> stream, std::span<std::byte> cluster) {
  constexpr int kRawMaxWindow = -15;
  z_stream z{};
  // zlib's next_in is not const, but it is only read.
  z.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(stream.data()));
  z.avail_in = static_cast<uInt>(stream.size());
  z.next_out = reinterpret_cast<Bytef*>(cluster.data());
  z.avail_out = static_cast<uInt>(cluster.size());
  if (inflateInit2(&z, kRawMaxWindow) != Z_OK) return {"zlib cannot be initialised", false, 0};
  const int result = inflate(&z, Z_FINISH);
  Decoded decoded;
  decoded.used = stream.size() - z.avail_in;
  // QEMU accepts a full cluster, whether or not the stream goes on.
  const bool filled = z.avail_out == 0 && (result == Z_STREAM_END || result == Z_BUF_ERROR);
  if (!filled) {
    decoded.truncated = result == Z_BUF_ERROR && z.avail_in == 0;
    decoded.error = fmt::format("deflate stream: {} after {} of {} bytes",
                                z.msg != nullptr         ? z.msg
                                : result == Z_STREAM_END ? "shorter than a cluster"
                                                         : "it ends early",
                                cluster.size() - z.avail_out, cluster.size());
  }
  inflateEnd(&z);
  return decoded;
}

Decoded unzstd_cluster(std::span<const std::byte> stream, std::span<std::byte> cluster) {
  struct Free {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };
  thread_local const std::unique_ptr<ZSTD_DCtx, Free> context(ZSTD_createDCtx());
  if (!context) return {"zstd cannot be initialised", false, 0};
  ZSTD_DCtx_reset(context.get(), ZSTD_reset_session_only);
  ZSTD_inBuffer in{stream.data(), stream.size(), 0};
  ZSTD_outBuffer out{cluster.data(), cluster.size(), 0};
  std::size_t left = 1;  // 0 at the end of a frame
  while (out.pos < out.size || left != 0) {
    const std::size_t before = in.pos + out.pos;
    left = ZSTD_decompressStream(context.get(), &out, &in);
    const auto fail = [&](const char* why, bool truncated) {
      return Decoded{fmt::format("zstd stream: {} after {} of {} bytes", why, out.pos, out.size), truncated,
                     in.pos};
    };
    if (ZSTD_isError(left) != 0) return fail(ZSTD_getErrorName(left), false);
    if (in.pos + out.pos == before) {
      return out.pos == out.size ? fail("longer than a cluster", false) : fail("it ends early", true);
    }
  }
  return {{}, false, in.pos};
}

}  // namespace

std::optional<CompressionChoice> parse_compression(const std::string& text) {
  if (text == "none") return std::nullopt;
  const std::size_t colon = text.find(':');
  const std::string name = text.substr(0, colon);
  if (name != "zlib" && name != "zstd") {
    throw Error(Outcome::Usage,
                fmt::format("unknown compression type \"{}\"; choose none, zlib or zstd, the last two with "
                            ":LEVEL if need be",
                            name));
  }
  const bool zlib = name == "zlib";
  CompressionChoice choice{zlib ? Compression::Deflate : Compression::Zstd,
                           zlib ? Z_DEFAULT_COMPRESSION : ZSTD_CLEVEL_DEFAULT};
  if (colon == std::string::npos) return choice;
  const int max = zlib ? kMaxZlibLevel : ZSTD_maxCLevel();
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data() + colon + 1, end, choice.level);
  if (error != std::errc() || rest != end || choice.level < 1 || choice.level > max) {
    throw Error(Outcome::Usage, fmt::format("the level of {} must be 1 to {}", name, max));
  }
  return choice;
}

struct Compressor::State {
  struct EndZlib {
    void operator()(z_stream* z) const {
      deflateEnd(z);
      delete z;
    }
  };
  struct EndZstd {
    void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
  };
  CompressionChoice choice;
  std::unique_ptr<z_stream, EndZlib> zlib;
  std::unique_ptr<ZSTD_CCtx, EndZstd> zstd;
};

Compressor::Compressor(const CompressionChoice& choice) : state_(std::make_unique<State>()) {
  state_->choice = choice;
  if (choice.type == Compression::Zstd) {
    state_->zstd.reset(ZSTD_createCCtx());
    if (!state_->zstd) throw Error(Outcome::Io, "zstd cannot be initialised");
    ZSTD_CCtx_setParameter(state_->zstd.get(), ZSTD_c_compressionLevel, choice.level);
    return;
  }
  auto* const z = new z_stream{};
  if (deflateInit2(z, choice.level, Z_DEFLATED, kWrittenWindow, kMemoryLevel, Z_DEFAULT_STRATEGY) != Z_OK) {
    delete z;
    throw Error(Outcome::Io, "zlib cannot be initialised");
  }
  state_->zlib.reset(z);
}

Compressor::~Compressor() = default;
Compressor::Compressor(Compressor&&) noexcept = default;

// zstd allocates when it knows how much there is to compress, so compress one cluster and ask it.
std::uint64_t Compressor::memory_for(const CompressionChoice& choice, std::uint64_t cluster_size) {
  constexpr std::uint64_t kZlib = 256 << 10;
  if (choice.type != Compression::Zstd) return kZlib;
  Compressor one(choice);
  std::vector<std::byte> streams;
  one.compress(std::vector<std::byte>(cluster_size), streams);
  return ZSTD_sizeof_CCtx(one.state_->zstd.get());
}

std::size_t Compressor::compress(std::span<const std::byte> cluster, std::vector<std::byte>& streams) {
  const std::size_t begin = streams.size();
  const std::size_t room = cluster.size() - 1;
  streams.resize(begin + room);
  std::size_t length = 0;
  if (state_->zstd) {
    const std::size_t result =
        ZSTD_compress2(state_->zstd.get(), streams.data() + begin, room, cluster.data(), cluster.size());
    length = ZSTD_isError(result) != 0 ? 0 : result;
  } else {
    z_stream& z = *state_->zlib;
    deflateReset(&z);
    z.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(cluster.data()));
    z.avail_in = static_cast<uInt>(cluster.size());
    z.next_out = reinterpret_cast<Bytef*>(streams.data() + begin);
    z.avail_out = static_cast<uInt>(room);
    if (deflate(&z, Z_FINISH) == Z_STREAM_END) length = room - z.avail_out;
  }
  streams.resize(begin + length);
  return length;
}

Decoded decompress(Compression type, std::span<const std::byte> stream, std::span<std::byte> cluster) {
  return type == Compression::Zstd ? unzstd_cluster(stream, cluster) : inflate_cluster(stream, cluster);
}

}  // namespace qchain
