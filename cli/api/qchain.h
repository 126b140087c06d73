// qchain as a library: the verbs of the command line as functions that take values and return results.
//
//     #include <qchain/qchain.h>
//
//     qchain::PullRequest request;
//     request.uri = "nbd+unix:///vda?socket=/run/backup.sock";
//     request.output = "/backup/vda.1.qcow2";
//     request.parent = "/backup/vda.0.qcow2";
//     const qchain::PullResult layer = qchain::pull(request);
//
//     qchain::VerifyRequest drill;
//     drill.image = layer.output;
//     if (qchain::verify(drill).outcome != qchain::Outcome::Done) alarm("the chain is not what was pulled");
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
// What holds for every verb:
// - It blocks until all is done, and prints nothing. Verbs may run at the same time, in any number of
//   threads; nothing is shared between them.
// - It throws Error (error.h) where it cannot go on: outcome() says what kind of failure that is, and
//   what() names file, offset and value. Whatever it was to write is not there then: no file appears under
//   the output's name before it is complete and durable, and what stood there stays. What a verb was asked to
//   find, such as damage, is a result and not thrown.
// - Sizes and offsets are bytes of the guest's disk, unless said otherwise. Digests are "ALGORITHM:HEX", in
//   blkhash form over blocks of 64 KiB; an empty string: not known. Paths and names are bytes as given.
//
// What stays with the program: SIGPIPE is to be ignored where an output may be a pipe or a socket, and chains
// of hundreds of layers need as many file descriptors (RLIMIT_NOFILE).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/api/inspect.h"
#include "cli/api/run.h"
#include "cli/api/seal.h"
#include "cli/api/verify.h"
#include "extent/error.h"
#include "extent/export.h"
#include "qcow2/open_options.h"
#include "verify/discrepancy.h"

namespace qchain {

// ---- pull: a live export becomes a layer, or a raw file ----

/// How much of what a dirty bitmap calls clean is compared with the parent.
struct CheckClean {
  enum class Mode {
    Sample,    ///< At least 64 blocks, at most 3 % of what is read, spread over the disk.
    Fraction,  ///< Of the blocks.
    All,
    None,
  };
  Mode mode = Mode::Sample;
  double fraction = 0;  ///< For Fraction: above 0, below 1.
};

/// What to do where the bitmap turns out to have missed a change.
enum class OnMissed {
  CompareAll,  ///< Start over, with everything read and compared.
  Fail,        ///< Publish nothing: Error (Mismatch).
};

struct PullRequest {
  std::string uri;  ///< Of the export: nbd://, nbds://, nbd+unix:// or nbds+unix://.
  NbdOptions nbd;
  JobOwner* owner = nullptr;  ///< nullptr: the end of the job is not excluded, and the result says so.
  std::string output;         ///< Path of the new layer; its manifest is OUTPUT.manifest.
  bool replace = false;       ///< Whether a regular file that stands there is replaced.
  std::string parent;         ///< Path of the parent (backing) image; empty: a full image.
  bool parent_is_raw = false;
  OpenOptions open;        ///< Of the parent's chain.
  std::string bitmap;      ///< Dirty bitmap to use; empty: the only one on offer.
  bool shallow = false;    ///< What the active layer holds (qemu:allocation-depth), instead of a bitmap.
  std::string checkpoint;  ///< Recorded: the point in time that this layer is.
  std::string since;       ///< The checkpoint that the bitmap counts from: has to be the parent's.
  std::string layer_id;    ///< UUID; empty: a random one.
  std::uint64_t cluster_size = 0;  ///< Power of two from 4 KiB to 2 MiB; 0: the parent's, else 64 KiB.
  bool extended_l2 = false;
  std::string compression = "none";  ///< "none", "zlib" or "zstd", the last two with ":LEVEL" if need be.
  /// Of the manifest: "sha256", "sha512", "blake2b512" or "xxh3-128"; empty: the parent's, else sha256;
  /// "none": no manifest.
  std::string digest;
  std::string sign_key;  ///< Path of an Ed25519 key (PEM); empty: the manifest is not signed.
  CheckClean check_clean;
  OnMissed on_missed = OnMissed::CompareAll;
  bool allow_other_export = false;  ///< The parent may come from an export of another name.
  bool require_read_only = false;   ///< Refuse an export that can be written to.
  bool no_extents = false;          ///< Read every byte, whatever the server says of zeros.
};

/// A layer that is published.
struct PullResult {
  std::string output;
  std::string manifest;  ///< Path; empty: none was wanted.
  bool is_signed = false;
  bool is_increment = false;
  std::string bitmap;  ///< The one that was used; empty: none.
  std::uint64_t virtual_size = 0;
  std::uint64_t cluster_size = 0;
  std::uint64_t data_bytes = 0;       ///< Of the disk, stored in this layer.
  std::uint64_t zero_bytes = 0;       ///< Of the disk, recorded as zeros in this layer.
  std::uint64_t inherited_bytes = 0;  ///< Of the disk, left to the parent, or unallocated.
  std::uint64_t compressed_clusters = 0;
  std::uint64_t read_bytes = 0;    ///< From the export.
  std::uint64_t file_bytes = 0;    ///< Length of the image's file.
  std::uint64_t missed_bytes = 0;  ///< Changed, and the bitmap did not say so; they are in the layer.
  std::string clean_checked;       ///< What of the clean ranges was compared: "all", "sample of ...", "none".
  std::string layer_id;
  std::string parent_id;
  std::string digest;         ///< Of the whole disk.
  std::string parent_digest;  ///< Of the disk that the parent describes.
  std::string source;         ///< "read-only export" or "writable export".
  std::string export_name;
  std::string point_in_time;  ///< Who said that the job was still running, or that its end was not excluded.
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
  int descriptor = -1;  ///< Where it is not -1: a stream to write to, instead of `output`. Stays open.
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

// ---- restore: the disk that a chain describes, written out ----

struct RestoreRequest {
  std::string image;  ///< Path of the layer whose point in time is wanted.
  OpenOptions open;
  std::string destination;  ///< Path of a file or a block device, or an NBD URI.
  int descriptor = -1;    ///< Where it is not -1: a stream to write to, instead of `destination`. Stays open.
  NbdOptions nbd;         ///< Of a destination that is an export.
  bool as_layer = false;  ///< One full qcow2 layer with a manifest, instead of a raw disk.
  bool replace = false;   ///< Whether a regular file that stands there is replaced.
  /// Do not look at the manifests; what cannot be read becomes zeros and is listed.
  bool no_verify = false;
  /// Write all that can be read, and list what cannot, or is not what was backed up.
  bool salvage = false;
  std::vector<std::string> trust_keys;  ///< Paths: every manifest has to be signed by one of these keys.
  bool read_back = false;               ///< Read what was written again, past the page cache, and compare it.
  bool zero_rest = false;               ///< Of a device or an export that is longer than the disk.
  bool preallocate = false;             ///< Set aside the space of zeros too.
};

struct RestoreResult {
  /// Done: all of it was proven, or no_verify was asked for and nothing is missing. Incomplete: something is
  /// missing, or no manifest tells what it should be. Mismatch or Io: what was read back is not what was
  /// written; a file does not exist then.
  Outcome outcome = Outcome::Done;
  std::uint64_t length = 0;        ///< Of the disk.
  std::uint64_t virtual_size = 0;  ///< The same, in whole sectors.
  std::uint64_t data_bytes = 0;
  std::uint64_t zero_bytes = 0;
  std::uint64_t rest_bytes = 0;  ///< Of a device or an export, behind the disk: left as they were.
  bool is_in_place =
      false;  ///< A device, an export or a stream: not a file that appears when it is complete.
  bool has_manifest = false;         ///< Whether blocks were held against digests.
  bool is_verified = false;          ///< Every block, and the digest of the whole.
  bool has_recorded_digest = false;  ///< The whole has the digest that the image's header records.
  std::uint64_t unknown_bytes = 0;   ///< No manifest tells what they should be.
  std::string root;                  ///< The digest of the disk, by the manifest.
  std::string layer_id;              ///< Of the layer that was written; empty: a raw disk.
  Findings losses;  ///< With no_verify or salvage: what is zeros now, or not what was backed up.
  std::optional<Findings> read_back;
};

QCHAIN_API RestoreResult restore(const RestoreRequest& request, const Run& run = {});

// ---- digest: the content of a disk in one value ----

struct DigestRequest {
  std::string source;   ///< Path of an image, or an NBD URI.
  bool is_raw = false;  ///< Of a path: a raw file, not qcow2.
  OpenOptions open;
  NbdOptions nbd;
  JobOwner* owner = nullptr;  ///< Of the job behind an export.
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
