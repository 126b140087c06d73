#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "extent/block_device.h"
#include "extent/file.h"
#include "extent/scan.h"
#include "qcow2/compression.h"
#include "qcow2/header.h"
#include "qcow2/identity.h"

namespace qchain {

/// Who wants to see every block of which a layer holds any byte, while the layer is written.
struct LayerObserver {
  WatcherFactory make_watcher;
  std::uint64_t block_size = 0;  ///< Blocks are read whole. Bytes, a power of two up to 64 MiB.
  GuestRange also_read;          ///< Whole blocks to see though the layer may hold nothing of them.
};

inline constexpr unsigned kMinWrittenClusterBits = 12;  // a header with a long backing name fits
inline constexpr unsigned kDefaultClusterBits = 16;

class Increment;

struct LayerOptions {
  Position position = Position::Bottom;
  unsigned cluster_bits = kDefaultClusterBits;   ///< kMinWrittenClusterBits to kMaxClusterBits.
  bool extended_l2 = false;                      ///< Needs kMinExtendedL2ClusterBits.
  std::optional<CompressionChoice> compression;  ///< Of whole data clusters.
  unsigned workers = 1;
  std::optional<LayerObserver> observer = std::nullopt;
  /// Whether the observer's watchers are told of blocks that cannot be read, which become zeros.
  bool salvage = false;
  /// Where the source is an increment: what it doubts is held against the parent while it is written.
  Increment* increment = nullptr;
  /// Called with the bytes of the disk that have been dealt with, in guest order.
  std::function<void(std::uint64_t done)> progress = [](std::uint64_t) {};
};

/// A layer that is written but for its header. Bytes of the disk, but for file_bytes.
struct WrittenLayer {
  Header header;  ///< Backing name, format and identity are still to be filled in.
  std::uint64_t data_bytes = 0;
  std::uint64_t compressed_clusters = 0;
  std::uint64_t zero_bytes = 0;
  std::uint64_t inherited_bytes = 0;
  std::uint64_t read_bytes = 0;  ///< From the source; what of it was zeros is not stored.
  std::uint64_t file_bytes = 0;
};

/// Writes what `source` is, as its extents say, to the empty `file`: one pass, in any number of threads,
/// the same bytes always. A disk whose size is not a multiple of 512 is rounded up with zeros. Nothing is
/// an image yet when this returns: write_header() makes it one. Throws Error.
WrittenLayer write_layer(BlockDevice& source, const File& file, const LayerOptions& options);

/// Writes the header, once all else is durable. Throws Error.
void write_header(const File& file, const Header& header);

}  // namespace qchain
