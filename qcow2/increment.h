#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "extent/nbd_export.h"
#include "qcow2/chain.h"
#include "qcow2/clean_sample.h"

namespace qchain {

/// How far a dirty bitmap is trusted where it reports a range as clean.
enum class Trust {
  Bitmap,   ///< Trusted, except for suspect ranges and a sample.
  Nothing,  ///< Everything is read and compared with the parent.
};

/// A range that is clean according to the bitmap.
struct CleanRange {
  GuestRange range;
  bool compare = false;  ///< Whether it is suspect and has to be compared; else it is inherited unread.
};

/// A range differs from the parent although the bitmap reports it as clean. Thrown with Trust::Bitmap: the
/// layer would be wrong, and can only be written with Trust::Nothing.
class BitmapContradiction : public Error {
 public:
  explicit BitmapContradiction(const std::string& message) : Error(Outcome::Mismatch, message) {}
};

struct IncrementOptions {
  Trust trust = Trust::Bitmap;
  double fraction = 0;      ///< Of the clean blocks that hold data: compared while the layer is written.
  bool sample = true;       ///< Whether check_sample() will be called.
  std::uint64_t seed = 0;   ///< Of the sample.
  bool trust_zeros = true;  ///< Else what the export reports as zeros is read like data.
};

/// What a layer on top of `parent` has to hold so that the two together have the content of the export.
///
/// Past the parent's end everything counts as changed: inherited bytes read as zeros there.
///
/// The bitmap is a hint. Clean ranges that are suspect are compared with the parent: live zeros over data of
/// the parent (a disk that was shrunk and grew again), and live data over zeros of the parent (a missed
/// write). extents() reports them as changed; the writer of the layer gets them from take_clean(), and a
/// CleanComparison makes it inherit what is equal to the parent. Of the other clean ranges, which are data on
/// both sides, a sample is compared.
class Increment : public BlockDevice {
 public:
  /// Both have to outlive this. The export must have been opened with a source of changes.
  Increment(NbdExport& live, Chain& parent, const IncrementOptions& options);

  std::string name() const override { return live_.name(); }
  std::uint64_t size() const override { return live_.size(); }
  Extents extents(const GuestRange& range) override;
  std::unique_ptr<Reader> open_reader() override { return live_.open_reader(); }

  const Chain& parent() const noexcept { return parent_; }
  Trust trust() const noexcept { return options_.trust; }
  /// Whether a disk of `bytes` has another size than the parent. It may have been smaller in between, which
  /// is not recorded.
  static bool is_resized(std::uint64_t bytes, const Chain& parent) {
    return align_up(bytes, kSectorSize) != parent.size();
  }

  /// The clean ranges in `piece`, in order; empty if none of them is suspect. To be called for pieces in
  /// guest order, one at a time.
  std::vector<CleanRange> take_clean(const GuestRange& piece);
  /// Records the result of comparing clean ranges. Throws BitmapContradiction with Trust::Bitmap, if any of
  /// them differs. Thread-safe.
  void note_compared(std::uint64_t equal_data_bytes, const Extents& missed);

  /// Reads the sample of clean blocks and compares it with the parent, after the layer was written.
  /// `read_bytes`: how much was read for the layer; the sample grows with it. Throws BitmapContradiction;
  /// Error (Mismatch) if nearly all of it differs.
  void check_sample(std::uint64_t read_bytes);

  /// Bytes that the bitmap has missed, as far as they were found, and the first ranges of them.
  std::uint64_t missed_bytes() const noexcept { return missed_bytes_; }
  const Extents& first_missed() const noexcept { return first_missed_; }
  std::uint64_t sampled_blocks() const noexcept { return sampled_blocks_; }
  /// Throws Error (Mismatch) if nearly all live data that was compared differs: it is another disk.
  void require_same_disk() const;

 private:
  void add_clean(const GuestRange& range, bool zero, Extents& extents);
  void add(const CleanRange& clean, Kind kind, Extents& extents);
  void add_candidate(const GuestRange& range, Extents& extents);
  void compare_clean(const ReadRequest& live, const ReadRequest& parent, Extents& missed);

  NbdExport& live_;
  Chain& parent_;
  const IncrementOptions options_;
  CleanSample sample_;
  bool after_dirty_ = false;             // whether the range before was dirty
  std::optional<GuestRange> candidate_;  // for the sample, before the status of the range after it is known
  std::deque<CleanRange> clean_;         // not yet taken
  std::mutex mutex_;                     // protects the members below
  std::uint64_t missed_bytes_ = 0;
  std::uint64_t missed_data_bytes_ = 0;  // the part of them that is not zeros now
  std::uint64_t equal_data_bytes_ = 0;
  std::uint64_t sampled_blocks_ = 0;
  Extents first_missed_;
};

}  // namespace qchain
