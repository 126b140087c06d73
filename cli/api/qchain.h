// The qchain library: the commands of qchain as functions that take a request and return a result.
//
//     #include <qchain/qchain.h>
//
//     qchain::PullRequest request;
//     request.uri = "nbd+unix:///vda?socket=/run/backup.sock";
//     request.output = "/backup/vda.1.qcow2";
//     request.parent = "/backup/vda.0.qcow2";
//     const qchain::PullResult layer = qchain::pull(request);
//
//     qchain::VerifyRequest check;
//     check.image = layer.output;
//     if (qchain::verify(check).outcome != qchain::Outcome::Done) alarm("the chain is damaged");
//
//     qchain::RestoreRequest wanted;
//     wanted.image = layer.output;
//     wanted.destination = "/restored/vda.raw";
//     const qchain::RestoreResult restored = qchain::restore(wanted);
//     if (!restored.is_verified) alarm(to_string(restored.outcome));
//
//     pull(), pull_raw()  a live export becomes a layer, or a raw file           below
//     verify()            is a chain what was backed up?                         verify.h
//     inspect()           what is a chain made of? Layers, proofs, a map         inspect.h
//     seal()              writes the manifests that layers lack                  seal.h
//     restore()           the disk that a chain describes, written out           below
//     digest()            the content of a disk in one value                     below
//
// Compile and link with `pkg-config --cflags --libs qchain`, or in CMake with find_package(qchain) and the
// target qchain::qchain.
//
// All functions:
// - They block until the work is done, and print nothing. They are thread-safe, and share no state.
// - They throw Error (error.h) if the work cannot go on: outcome() is the kind of failure, and what() names
//   file, offset and value. On failure no output file is created, and an existing file is left unchanged: a
//   file gets its name only when it is complete and durable. Findings, such as damage, are results and not
//   thrown.
// - Sizes and offsets are in bytes of the guest's disk, unless stated otherwise. Digests are "ALGORITHM:HEX",
//   in the blkhash construction over blocks of 64 KiB; an empty string: unknown. Paths and names are used as
//   given.
//
// The program has to ignore SIGPIPE if an output may be a pipe or a socket. Chains of hundreds of layers need
// as many file descriptors (RLIMIT_NOFILE).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/api/inspect.h"
#include "cli/api/point.h"
#include "cli/api/run.h"
#include "cli/api/seal.h"
#include "cli/api/verify.h"
#include "extent/error.h"
#include "extent/export.h"
#include "qcow2/open_options.h"
#include "verify/discrepancy.h"

namespace qchain {

// ---- pull: copies a live export to a layer or a raw file ----

/// How much of what the dirty bitmap marks as clean is compared with the parent.
struct CheckClean {
  enum class Mode {
    Sample,    ///< At least 64 blocks, at most 3 % of the data read, spread over the disk.
    Fraction,  ///< A fraction of the blocks.
    All,
    None,
  };
  Mode mode = Mode::Sample;
  double fraction = 0;  ///< For Fraction: above 0, below 1.
};

/// What to do if the bitmap missed a change.
enum class OnMissed {
  CompareAll,  ///< Start over and compare everything.
  Fail,        ///< Publish nothing: Error (Mismatch).
};

struct PullRequest {
  std::string uri;  ///< The export: nbd://, nbds://, nbd+unix:// or nbds+unix://.
  NbdOptions nbd;
  JobOwner* owner = nullptr;  ///< nullptr: not checked whether the job is still running; the result says so.
  std::string output;         ///< Path of the new layer; its manifest is OUTPUT.manifest.
  bool replace = false;       ///< Replace an existing regular file.
  std::string parent;         ///< Path of the parent (backing) image; empty: a full image.
  bool parent_is_raw = false;
  OpenOptions open;                ///< For the parent's chain.
  std::string bitmap;              ///< Dirty bitmap to use; empty: the only one that the export offers.
  bool shallow = false;            ///< Copy what the active layer allocates (qemu:allocation-depth).
  std::string checkpoint;          ///< Checkpoint (point in time) to record for this layer.
  std::string since;               ///< Checkpoint at which the bitmap starts; has to be the parent's.
  std::string layer_id;            ///< UUID; empty: random.
  std::uint64_t cluster_size = 0;  ///< Power of two from 4 KiB to 2 MiB; 0: the parent's, else 64 KiB.
  bool extended_l2 = false;
  std::string compression = "none";  ///< "none", "zlib" or "zstd"; the last two can be followed by ":LEVEL".
  /// Digest algorithm of the manifest: "sha256", "sha512", "blake2b512" or "xxh3-128"; empty: the parent's,
  /// else sha256; "none": no manifest.
  std::string digest;
  std::string sign_key;  ///< Path of an Ed25519 private key (PEM); empty: do not sign the manifest.
  /// With a sign_key, all layers below have to be signed with it, or with one of these keys (paths): a
  /// signature vouches for the whole disk.
  std::vector<std::string> trust_keys;
  bool sign_unproven = false;  ///< Sign all the same; the manifest records that.
  CheckClean check_clean;
  OnMissed on_missed = OnMissed::CompareAll;
  bool allow_other_export = false;  ///< Accept a parent that was pulled from another export or disk.
  bool require_read_only = false;   ///< Refuse a writable export.
  bool no_extents = false;          ///< Read every byte; do not rely on block status.
};

/// A published layer.
struct PullResult {
  std::string output;
  std::string manifest;  ///< Path; empty: none was written.
  bool is_signed = false;
  bool is_increment = false;
  std::string bitmap;  ///< The dirty bitmap that was used; empty: none.
  std::uint64_t virtual_size = 0;
  std::uint64_t cluster_size = 0;
  std::uint64_t data_bytes = 0;       ///< Data of the disk stored in this layer.
  std::uint64_t zero_bytes = 0;       ///< Zeros of the disk recorded in this layer.
  std::uint64_t inherited_bytes = 0;  ///< Inherited from the parent, or unallocated.
  std::uint64_t compressed_clusters = 0;
  std::uint64_t read_bytes = 0;    ///< Read from the export.
  std::uint64_t file_bytes = 0;    ///< Size of the image file.
  std::uint64_t missed_bytes = 0;  ///< Changes that the bitmap missed; they are in the layer.
  std::string clean_checked;  ///< How much of the clean ranges was compared: "all", "sample of ...", "none".
  std::string layer_id;
  std::string parent_id;
  std::string digest;         ///< Digest of the whole disk.
  std::string parent_digest;  ///< Digest of the parent's disk.
  std::string source;         ///< "read-only export" or "writable export".
  std::string export_name;
  std::string point_in_time;  ///< The owner that confirmed the job, or that its end was not excluded.
};

QCHAIN_API PullResult pull(const PullRequest& request, const Run& run = {});

/// Bytes [offset, offset + length) of the disk.
struct ByteRange {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;

  friend bool operator==(const ByteRange&, const ByteRange&) = default;
};

struct RawPullRequest {
  std::string uri;
  NbdOptions nbd;
  JobOwner* owner = nullptr;
  std::string output;  ///< Path; becomes sparse.
  bool replace = false;
  int descriptor = -1;             ///< If not -1: a stream to write to instead of `output`. Stays open.
  std::optional<ByteRange> range;  ///< nullopt: the whole disk.
  bool require_read_only = false;
  bool no_extents = false;
};

struct RawPullResult {
  ByteRange range;
  std::uint64_t data_bytes = 0;
  std::uint64_t zero_bytes = 0;
  std::string source;
  std::string export_name;
  std::string point_in_time;
};

QCHAIN_API RawPullResult pull_raw(const RawPullRequest& request, const Run& run = {});

// ---- restore: writes the disk that a chain describes ----

struct RestoreRequest {
  std::string image;  ///< Path of the layer to restore.
  OpenOptions open;
  std::string destination;  ///< Path of a file or a block device, or an NBD URI.
  int descriptor = -1;      ///< If not -1: a stream to write to instead of `destination`. Stays open.
  NbdOptions nbd;           ///< For a destination that is an export.
  bool as_layer = false;    ///< Write a full qcow2 layer with a manifest instead of a raw disk.
  bool replace = false;     ///< Replace an existing regular file.
  /// Ignore the manifests; write zeros for what cannot be read, and list it.
  bool no_verify = false;
  /// Write all that can be read; list what cannot be read, or differs from what was backed up.
  bool salvage = false;
  std::vector<std::string> trust_keys;  ///< Paths: every manifest has to be signed by one of these keys.
  PointDemand point;         ///< Which point the image has to be; Error (BadManifest) if it is another.
  bool read_back = false;    ///< Read back what was written, bypassing the page cache, and compare.
  bool zero_rest = false;    ///< Zero the rest of a device or an export after the end of the disk.
  bool preallocate = false;  ///< Allocate space for zeros too.
};

struct RestoreResult {
  /// Done: everything was verified, or no_verify was given and nothing is missing. Incomplete: something is
  /// missing or not covered by a manifest. Mismatch or Io: reading back failed; a file is not created then.
  Outcome outcome = Outcome::Done;
  std::uint64_t length = 0;        ///< Size of the disk.
  std::uint64_t virtual_size = 0;  ///< The same, rounded up to whole sectors.
  std::uint64_t data_bytes = 0;
  std::uint64_t zero_bytes = 0;
  std::uint64_t rest_bytes = 0;      ///< Of a device or an export, after the end of the disk: unchanged.
  bool is_in_place = false;          ///< The destination is a device, an export or a stream.
  bool has_manifest = false;         ///< Blocks were compared with digests.
  bool is_verified = false;          ///< Every block and the digest of the disk match.
  bool has_recorded_digest = false;  ///< The digest of the disk matches the one in the image's header.
  std::uint64_t unknown_bytes = 0;   ///< Not covered by any manifest.
  std::string root;                  ///< Digest of the disk, from the manifest.
  PointInTime point;                 ///< Of what was restored.
  std::string layer_id;              ///< Id of the layer that was written; empty: raw disk.
  Findings losses;  ///< With no_verify or salvage: what is zeros now, or differs from what was backed up.
  std::optional<Findings> read_back;
};

QCHAIN_API RestoreResult restore(const RestoreRequest& request, const Run& run = {});

// ---- digest: the content digest of a disk ----

struct DigestRequest {
  std::string source;   ///< Path of an image, or an NBD URI.
  bool is_raw = false;  ///< A raw file, not a qcow2 image.
  OpenOptions open;
  NbdOptions nbd;
  JobOwner* owner = nullptr;  ///< For an export: the owner of its backup job.
  std::string algorithm = "sha256";
};

struct DigestResult {
  std::string algorithm;
  bool is_cryptographic = false;
  std::string hex;
  std::uint64_t length = 0;
};

QCHAIN_API DigestResult digest(const DigestRequest& request, const Run& run = {});

}  // namespace qchain
