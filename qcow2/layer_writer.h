#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "extent/block_device.h"
#include "extent/file.h"
#include "extent/stage.h"
#include "qcow2/compression.h"
#include "qcow2/header.h"
#include "qcow2/identity.h"

namespace qchain {

/// Sees every block of which a layer stores any byte, before the layer is written.
struct LayerObserver {
  StageFactory make_stage;
  std::uint64_t block_size = 0;  ///< Blocks are read whole. Bytes, a power of two up to 64 MiB.
  GuestRange also_read;          ///< Whole blocks to read even if the layer stores nothing of them.
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
  std::vector<StageFactory> stages = {};  ///< Before the observer.
  /// If the source is an increment: its suspect ranges are compared with the parent while it is written.
  Increment* increment = nullptr;
  /// Called with the bytes of the disk that have been processed, in guest order.
  std::function<void(std::uint64_t done)> progress = [](std::uint64_t) {};
};

/// A layer that is written except for its header. All in bytes of the disk, except file_bytes.
struct WrittenLayer {
  Header header;  ///< Backing name, format and identity have to be filled in.
  std::uint64_t data_bytes = 0;
  std::uint64_t compressed_clusters = 0;
  std::uint64_t zero_bytes = 0;
  std::uint64_t inherited_bytes = 0;
  std::uint64_t read_bytes = 0;  ///< From the source; includes zeros, which are not stored.
  std::uint64_t file_bytes = 0;
};

/// Writes `source` to the empty `file`, in one pass; which ranges are stored follows from its extents. The
/// result is the same for any number of threads. A disk whose size is not a multiple of 512 is padded with
/// zeros. The file is an image only after write_header(). Throws Error.
WrittenLayer write_layer(BlockDevice& source, const File& file, const LayerOptions& options);

/// Writes the header. To be called when everything else is durable. Throws Error.
void write_header(const File& file, const Header& header);

}  // namespace qchain
