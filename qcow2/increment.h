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

/// How far a dirty bitmap is trusted when it says that a range is clean.
enum class Trust {
  Bitmap,   ///< But for what contradicts it at first sight, and a sample.
  Nothing,  ///< Everything is read and compared with the parent.
};

/// A range that the bitmap calls clean.
struct CleanRange {
  GuestRange range;
  bool compare = false;  ///< It is doubted; else it is inherited on trust.
};

/// The bitmap says clean of what is not what the parent holds. Thrown under Trust::Bitmap: the layer in the
/// making is not to be had that way.
class BitmapContradiction : public Error {
 public:
  explicit BitmapContradiction(const std::string& message) : Error(Outcome::Mismatch, message) {}
};

struct IncrementOptions {
  Trust trust = Trust::Bitmap;
  double fraction = 0;      ///< Of the clean blocks that hold data: compared while the layer is written.
  bool sample = true;       ///< Whether check_sample() is going to be called.
  std::uint64_t seed = 0;   ///< Of the sample.
  bool trust_zeros = true;  ///< Else what the export calls zeros is read like data.
};

/// What a layer on top of `parent` has to hold so that the two together are what the export is.
///
/// Past the parent's end everything counts as changed: inherited bytes read as zeros there.
///
/// A bitmap is a hint. What it calls clean is compared with the parent where that is not what one would
/// expect: live zeros over the parent's data (a disk that was cut and grew again), and live data over the
/// parent's zeros (a write that was missed). Those ranges are doubts: extents() gives them as changed, and
/// whoever writes the layer takes them with take_clean() and has a DoubtJudge inherit what is equal after
/// all. Of the rest, where both sides hold data, a sample is compared.
class Increment : public BlockDevice {
 public:
  /// Both have to outlive this. The export was opened with a source of changes.
  Increment(NbdExport& live, Chain& parent, const IncrementOptions& options);

  std::string name() const override { return live_.name(); }
  std::uint64_t size() const override { return live_.size(); }
  Extents extents(const GuestRange& range) override;
  std::unique_ptr<Reader> open_reader() override { return live_.open_reader(); }

  const Chain& parent() const noexcept { return parent_; }
  Trust trust() const noexcept { return options_.trust; }
  /// Whether a disk of `bytes` has another size than the parent: where it was cut on the way is not to be
  /// known.
  static bool is_resized(std::uint64_t bytes, const Chain& parent) {
    return align_up(bytes, kSectorSize) != parent.size();
  }

  /// What is clean in `piece`, in order; empty where nothing of it is doubted. Pieces are asked for in guest
  /// order, one at a time.
  std::vector<CleanRange> take_clean(const GuestRange& piece);
  /// What the comparison of clean bytes has brought. Throws BitmapContradiction where nothing may differ.
  /// Threads may call this at the same time.
  void note_compared(std::uint64_t equal_data_bytes, const Extents& missed);

  /// Reads the sample of clean blocks, and compares it; after the layer was written. `read_bytes`: what was
  /// read for it, by which the sample grows. Throws BitmapContradiction; Error (Mismatch) where nearly all of
  /// it differs.
  void check_sample(std::uint64_t read_bytes);

  /// Bytes that the bitmap missed, as found so far, and the first ranges of them.
  std::uint64_t missed_bytes() const noexcept { return missed_bytes_; }
  const Extents& first_missed() const noexcept { return first_missed_; }
  std::uint64_t sampled_blocks() const noexcept { return sampled_blocks_; }
  /// Throws Error (Mismatch) where nearly all live data that was compared differs: it is another disk.
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
  bool after_dirty_ = false;             // the last range that was seen was dirty
  std::optional<GuestRange> candidate_;  // the last one, whose other neighbour is not seen yet
  std::deque<CleanRange> clean_;         // not yet taken
  std::mutex mutex_;                     // of what follows
  std::uint64_t missed_bytes_ = 0;
  std::uint64_t missed_data_bytes_ = 0;  // of them: live data
  std::uint64_t equal_data_bytes_ = 0;
  std::uint64_t sampled_blocks_ = 0;
  Extents first_missed_;
};

}  // namespace qchain
