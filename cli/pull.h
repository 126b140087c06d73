#pragma once

#include <optional>
#include <string>

#include "cli/console.h"
#include "cli/options.h"
#include "extent/range.h"
#include "qcow2/chain.h"
#include "qcow2/compression.h"
#include "verify/digest.h"

namespace qchain {

/// How much of what a dirty bitmap calls clean is compared with the parent.
struct CheckClean {
  enum class Mode { Sample, Fraction, All, None };
  Mode mode = Mode::Sample;
  double fraction = 0;  ///< For Fraction: above 0, below 1.
};

/// What to do where the bitmap turns out to have missed a change.
enum class OnMissed {
  CompareAll,  ///< Start over, with everything compared.
  Fail,        ///< Publish nothing.
};

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
  CheckClean check_clean;
  OnMissed on_missed = OnMissed::CompareAll;
  bool allow_other_export = false;
  bool require_read_only = false;
  bool no_extents = false;
};

/// The command line that sets `options`, which has to outlive it.
CommandLine command_line_for(PullOptions& options);
/// Throws Error.
Outcome pull(const PullOptions& options, Console& console);

}  // namespace qchain
