#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/console.h"
#include "cli/options.h"
#include "extent/range.h"
#include "qcow2/chain.h"
#include "qcow2/compression.h"
#include "verify/digest.h"

namespace qchain {

/// qchain pull: copies a live export into the next layer of a chain, or into a raw file.
struct PullOptions {
  CommonOptions common;
  NbdOptions nbd;
  OwnerOptions owner;
  std::string uri;
  std::string output;  ///< "-": standard output, raw only.
  std::string parent;  ///< Empty: a full image.
  ImageFormat parent_format = ImageFormat::Qcow2;
  std::string bitmap;  ///< Empty: the only one on offer.
  bool shallow = false;
  std::string checkpoint;
  std::string since;
  std::optional<std::uint64_t> cluster_size;
  bool extended_l2 = false;
  std::optional<CompressionChoice> compression;
  ImageFormat format = ImageFormat::Qcow2;
  std::optional<GuestRange> range;  ///< Raw only.
  std::string layer_id;             ///< Empty: a random one.
  bool manifest = true;
  std::optional<Algorithm> algorithm;  ///< Of the manifest; nullopt: the parent's, else sha256.
  std::string sign_key;                ///< Path; empty: the manifest is not signed.
  bool force = false;
};

/// nullopt where --help was asked for. Throws Error (Usage).
std::optional<PullOptions> parse_pull(const std::vector<std::string>& words);
/// Throws Error.
Outcome pull(const PullOptions& options, Console& console);

}  // namespace qchain
