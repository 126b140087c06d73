#include "cli/api/pull_increment.h"

#include <fmt/format.h>

#include "cli/api/nbd_access.h"
#include "qcow2/increment.h"
#include "verify/parent_check.h"

namespace qchain {

namespace {

// The seed of the sample depends on the layer's id, so that a pull can be repeated.
std::uint64_t seed_for(const std::string& layer_id) {
  std::uint64_t hash = 0xCBF29CE484222325;  // FNV-1a
  for (const char c : layer_id) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3;
  return hash;
}

class IncrementWriter {
 public:
  IncrementWriter(const PullRequest& request, NbdExport& live, OpenedChain& parent, LayerBuild& build,
                  const ActiveRun& run)
      : request_(request), live_(live), parent_(parent), build_(build), run_(run) {
    options_.seed = seed_for(build.identity().id);
    options_.trust_zeros = !request.no_extents;
    options_.sample = request.check_clean.mode == CheckClean::Mode::Sample;
    if (request.check_clean.mode == CheckClean::Mode::All) options_.trust = Trust::Nothing;
    if (request.check_clean.mode == CheckClean::Mode::Fraction) {
      options_.fraction = request.check_clean.fraction;
    }
  }

  IncrementResult write() {
    find_reasons_for_doubt();
    try {
      write_once();
    } catch (const BitmapContradiction& contradiction) {
      require_sound_parent(parent_.points, increment_->first_missed());
      if (request_.on_missed == OnMissed::Fail) throw contradiction.with("; nothing was published");
      run_.warn(fmt::format("{}: starting over and comparing everything", contradiction.what()));
      options_.trust = Trust::Nothing;
      write_once();
    }
    require_sound_parent(parent_.points, increment_->first_missed());
    if (increment_->missed_bytes() != 0) handle_misses();
    return {std::move(written_), increment_->missed_bytes(), what_was_checked()};
  }

 private:
  // Checks for reasons not to trust the bitmap from the start.
  void find_reasons_for_doubt() {
    if (is_resized()) {
      compare_all(
          fmt::format("the disk has {} bytes and the parent {}, and dirty bitmaps are not reliable "
                      "after a resize",
                      live_.size(), parent_.chain->size()));
    }
    const ParentState state =
        check_parent(parent_.points, worker_count(request_.nbd, run_.workers(), Work::Read),
                     [this](const std::string& message) { run_.note(message); });
    if (state == ParentState::Unproven)
      compare_all("the parent's content cannot be checked without a manifest");
  }

  void compare_all(const std::string& why) {
    options_.trust = Trust::Nothing;
    run_.note(why + ": reading all data and comparing it with the parent");
  }

  void write_once() {
    increment_.emplace(live_, *parent_.chain, options_);
    build_.layer().increment = &*increment_;
    written_ = build_.write(*increment_);
    if (options_.sample && options_.trust == Trust::Bitmap) increment_->check_sample(written_.read_bytes);
    increment_->require_same_disk();
  }

  void handle_misses() const {
    const std::string first = to_string(increment_->first_missed().front().range);
    if (request_.on_missed == OnMissed::Fail && !is_resized()) {
      throw Error(
          Outcome::Mismatch,
          fmt::format("{}: the dirty bitmap missed {} changed bytes, first at {}; nothing was published",
                      live_.name(), increment_->missed_bytes(), first));
    }
    run_.warn(fmt::format(
        "the dirty bitmap marks {} bytes as clean that differ from the parent, first at {}; they are in "
        "the new layer; the disk may have been shrunk and grown, or written to while the bitmap was "
        "disabled",
        increment_->missed_bytes(), first));
  }

  std::string what_was_checked() const {
    if (options_.trust == Trust::Nothing) return "all";
    if (options_.fraction > 0)
      return fmt::format("fraction {}, seed {:016x}", options_.fraction, options_.seed);
    if (!options_.sample) return "none";
    return fmt::format("sample of {} blocks, seed {:016x}", increment_->sampled_blocks(), options_.seed);
  }

  bool is_resized() const { return Increment::is_resized(live_.size(), *parent_.chain); }

  const PullRequest& request_;
  NbdExport& live_;
  OpenedChain& parent_;
  LayerBuild& build_;
  const ActiveRun& run_;
  IncrementOptions options_;
  std::optional<Increment> increment_;  // of the latest attempt
  WrittenLayer written_;
};

}  // namespace

IncrementResult write_increment(const PullRequest& request, NbdExport& live, OpenedChain& parent,
                                LayerBuild& build, const ActiveRun& run) {
  return IncrementWriter(request, live, parent, build, run).write();
}

}  // namespace qchain
