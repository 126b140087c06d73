// qchain::inspect(): what is a chain made of? See qchain.h for what holds for every verb.
//
//     qchain::InspectRequest request;
//     request.image = "/backup/vda.1.qcow2";
//     const qchain::InspectResult chain = qchain::inspect(request);
//     for (const qchain::InspectedLayer& layer : chain.layers) log(layer.file);
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cli/api/run.h"
#include "cli/api/verdict.h"
#include "extent/error.h"
#include "extent/export.h"
#include "extent/range.h"
#include "qcow2/layer_identity.h"
#include "qcow2/layer_usage.h"
#include "qcow2/open_options.h"
#include "verify/discrepancy.h"

namespace qchain {

struct InspectRequest {
  std::string image;  ///< Path of the topmost layer.
  OpenOptions open;
  bool map = false;  ///< Whether to give `map` too.
};

/// An internal snapshot.
struct InspectedSnapshot {
  std::string id;
  std::string name;           ///< Any bytes, as the id.
  std::uint32_t seconds = 0;  ///< When it was taken, since 1970.
  std::uint64_t disk_bytes = 0;
  std::uint64_t machine_state_bytes = 0;  ///< Of the guest's memory and devices; 0: disk only.
};

/// A persistent dirty bitmap.
struct InspectedBitmap {
  std::string name;               ///< Any bytes.
  std::uint64_t granularity = 0;  ///< Bytes of the disk that one bit stands for; 0: its entry is corrupt.
  bool is_recording = false;      ///< QEMU enables it when it opens the image.
  bool is_in_use = false;         ///< Was not saved after its last use.
  std::uint64_t dirty_bytes = 0;  ///< Bytes of the disk whose bits are set; of a usable bitmap.
  std::string unusable;           ///< Why it cannot be used for an incremental backup; empty: it can.
};

/// What a qcow2 image says of itself. Names are as recorded, any bytes.
struct InspectedImage {
  unsigned version = 0;
  std::uint64_t cluster_size = 0;
  std::vector<std::string> features;          ///< For people: "extended L2", "zstd", ...
  std::string backing_file;                   ///< Empty: none.
  std::optional<std::string> backing_format;  ///< nullopt: not recorded.
  std::string data_file;                      ///< Of the external data file; empty: none.
  bool is_data_file_open = false;
  std::vector<InspectedSnapshot> snapshots;  ///< The first 1,000.
  std::vector<InspectedBitmap> bitmaps;      ///< The first 1,000.
};

/// A manifest that is complete in itself. Whether it belongs to the layer, verify() tells.
struct InspectedManifest {
  std::string algorithm;
  bool is_cryptographic = false;
  std::string root;         ///< The digest of the disk; empty: unknown.
  std::string signing_key;  ///< The public key, HEX, that its signature names; empty: not signed.
  /// Made with that key; whether the key is to be trusted, verify() tells.
  bool has_valid_signature = false;
  std::string origin;       ///< What the digests are of: "pull", "seal" or "restore".
  std::string time;         ///< The point in time: ISO 8601, UTC; empty: unknown.
  std::string sealed_time;  ///< With "seal": when the digests were made.
};

/// A verdict of verify() in the log beside a layer, IMAGE.proofs. Anybody may have written it: it proves
/// nothing. Text is as the log has it; empty: not there.
struct LoggedProof {
  std::string time;  ///< ISO 8601, UTC.
  std::string outcome;
  std::string tool;
  std::string mode;  ///< "drill", "against" or "manifest-only".
  std::uint64_t part = 1;
  std::uint64_t parts = 1;
  bool is_of_earlier_findings = false;  ///< Only what an earlier report found was looked at.
  std::string root;
  std::uint64_t read_bytes = 0;
  std::uint64_t different_bytes = 0;
  std::uint64_t unread_bytes = 0;
  std::uint64_t layers = 0;
  std::string manifest;  ///< The own digest of the layer's manifest, HEX; empty: it had none.
  std::string against;   ///< The URI of a live export.

  friend bool operator==(const LoggedProof&, const LoggedProof&) = default;
};

struct InspectedLayer {
  std::string file;
  std::optional<InspectedImage> image;  ///< nullopt: a raw file.
  std::uint64_t virtual_size = 0;
  std::uint64_t file_bytes = 0;               ///< Length of the file.
  std::uint64_t disk_bytes = 0;               ///< What the file takes on disk.
  std::optional<LayerUsage> usage;            ///< nullopt: its tables cannot be read.
  std::optional<Identity> identity;           ///< nullopt: it was not written by qchain.
  std::optional<InspectedManifest> manifest;  ///< nullopt: there is none, or it is bad.
  std::optional<LoggedProof> last_proof;      ///< Of this manifest; nullopt: none is logged.
};

/// What is wrong with a chain, or could not be read.
struct ChainProblem {
  std::optional<std::size_t> layer;  ///< nullopt: of a layer that could not be opened.
  Verdict verdict;
};

/// Where the bytes of a range are. Kind::Inherit: no layer has them, and they read as zeros.
struct MapPiece {
  GuestRange range;
  BlockSource source;  ///< `host_offset`: of the first byte; if compressed, of the cluster's stream.
};

struct InspectResult {
  Outcome outcome = Outcome::Done;     ///< The worst of `problems`.
  std::vector<InspectedLayer> layers;  ///< From the top, as far as they could be opened.
  /// Empty: all could be read, and every layer matches its backing file.
  std::vector<ChainProblem> problems;
  bool is_complete = false;  ///< All could be read.
  /// The next piece of the disk's map, in order and without gaps; nullopt at the end. Reads it as it goes,
  /// from files that it keeps open, and throws Error where it cannot; Run::cancellation ends it too, and
  /// has to outlive it. Empty: not asked for, or not all could be read.
  std::function<std::optional<MapPiece>()> map;
};

/// What is found is a result and not thrown; thrown is a cancellation.
QCHAIN_API InspectResult inspect(const InspectRequest& request, const Run& run = {});

}  // namespace qchain
