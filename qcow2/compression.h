#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "qcow2/header.h"

namespace qchain {

/// A compression type and level.
struct CompressionChoice {
  Compression type = Compression::Zstd;
  int level = 0;
};

/// From "zlib", "zstd" or "TYPE:LEVEL"; without a level, the library's default. nullopt for "none". Throws
/// Error (Usage).
std::optional<CompressionChoice> parse_compression(const std::string& text);

/// Encodes clusters. One thread at a time.
class Compressor {
 public:
  explicit Compressor(const CompressionChoice& choice);
  ~Compressor();
  Compressor(Compressor&&) noexcept;

  /// Bytes of memory that one compressor needs for clusters of `cluster_size` bytes: tens of MiB at zstd's
  /// highest levels.
  static std::uint64_t memory_for(const CompressionChoice& choice, std::uint64_t cluster_size);

  /// Appends one compressed cluster to `streams`; returns the stream's length, or 0, with `streams`
  /// unchanged, if it would not be smaller than the cluster.
  std::size_t compress(std::span<const std::byte> cluster, std::vector<std::byte>& streams);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The result of decoding a stream.
struct Decoded {
  std::string error;       ///< What is wrong with it; empty: nothing.
  bool truncated = false;  ///< The error is only that the stream ends too early.
  std::size_t used = 0;    ///< Bytes of the stream that the decoder has consumed.
};

/// Decodes the stream of one compressed cluster: fills `cluster`, never more. `stream` may be followed
/// by other bytes. For deflate: a raw stream with a window of up to 32 KiB. For zstd: one frame or several,
/// the last one finished.
Decoded decompress(Compression type, std::span<const std::byte> stream, std::span<std::byte> cluster);

}  // namespace qchain
