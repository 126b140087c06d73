#include "extent/nbd_export.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <functional>
#include <iterator>
#include <mutex>
#include <string_view>
#include <thread>
#include <utility>

#include "extent/error.h"
#include "extent/engine.h"
#include "extent/interrupt.h"

namespace qchain {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

const std::string kAllocation = "base:allocation";
const std::string kAllocationDepth = "qemu:allocation-depth";
const std::string kBitmapPrefix = "qemu:dirty-bitmap:";

constexpr std::uint32_t kAllocationZero = 1U << 1;
constexpr std::uint32_t kBitmapDirty = 1U << 0;
constexpr std::uint32_t kDepthActiveLayer = 1;

// The count of a block status request has 32 bits; this is the largest that every block size divides.
constexpr std::uint64_t kMaxStatusLength = std::uint64_t{2} << 30;
constexpr std::uint64_t kMinStatusLength = std::uint64_t{64} << 20;
constexpr std::uint64_t kMaxBlock = std::uint64_t{64} << 20;  // no server's block is larger

// A server that does not speak of several connections may keep a second one waiting for ever.
constexpr milliseconds kUninvitedTimeout{1000};

// How long the end of a pull job can go unnoticed: the server still serves, but no longer the past.
// confirm() lets this time pass after the last read.
constexpr milliseconds kEndOfJob{100};

constexpr unsigned kMaxLosses = 4;  // of the connection, without any progress
constexpr milliseconds kFirstPause{100};
constexpr std::size_t kMaxUnreadable = 64;  // blocks named by one failed read

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::ranges::find(names, name) != names.end();
}

NbdTarget with_timeout(NbdTarget target, milliseconds timeout) {
  target.timeout = std::min(target.timeout, timeout);
  return target;
}

std::vector<std::string> no_contexts(const std::vector<std::string>&) { return {}; }

// Which contexts to ask for, and what they mean for this export.
struct Choice {
  Changes::Source source = Changes::Source::None;
  std::vector<std::string> bitmaps;  // on offer
  std::string bitmap;
  std::vector<std::string> contexts;  // to ask for

  Choice(const std::string& uri, const Changes& changes, const std::vector<std::string>& offered)
      : source(changes.source) {
    for (const std::string& context : offered) {
      if (context.starts_with(kBitmapPrefix)) bitmaps.push_back(context.substr(kBitmapPrefix.size()));
    }
    if (contains(offered, kAllocation)) contexts.push_back(kAllocation);
    if (source == Changes::Source::DirtyBitmap) {
      bitmap = choose_bitmap(uri, changes.bitmap);
      contexts.push_back(kBitmapPrefix + bitmap);
    }
    if (source == Changes::Source::AllocationDepth) {
      if (!contains(offered, kAllocationDepth)) {
        throw Error(Outcome::Usage,
                    fmt::format("{}: offers no {}, so --shallow cannot tell what the active layer holds", uri,
                                kAllocationDepth));
      }
      contexts.push_back(kAllocationDepth);
    }
  }

  std::string choose_bitmap(const std::string& uri, const std::string& wanted) const {
    const std::string on_offer =
        bitmaps.empty() ? "none is on offer" : fmt::format("on offer: {}", fmt::join(bitmaps, ", "));
    if (wanted.empty() && bitmaps.empty()) {
      throw Error(Outcome::Usage, fmt::format("{}: offers no dirty bitmap, so what changed since the "
                                              "parent is unknown; pull a full image instead",
                                              uri));
    }
    if (wanted.empty() && bitmaps.size() > 1) {
      throw Error(Outcome::Usage,
                  fmt::format("{}: several dirty bitmaps; name one with --bitmap ({})", uri, on_offer));
    }
    if (wanted.empty()) return bitmaps.front();
    if (!contains(bitmaps, wanted)) {
      throw Error(Outcome::Usage, fmt::format("{}: no dirty bitmap {} ({})", uri, wanted, on_offer));
    }
    return wanted;
  }
};

// Cuts the answers of several contexts at each other's borders, as far as all of them reach.
class StatusMerger {
 public:
  StatusMerger(const Choice& choice, const std::vector<std::vector<ContextExtent>>& answers)
      : choice_(choice), answers_(answers), next_(answers.size(), 0) {
    for (const auto& answer : answers_) left_.push_back(answer.front().length);
  }

  std::vector<ExportStatus> merge(GuestOffset begin) {
    std::vector<ExportStatus> merged;
    while (std::ranges::all_of(left_, [](std::uint64_t left) { return left > 0; })) {
      const std::uint64_t step = *std::ranges::min_element(left_);
      ExportStatus status = current();
      status.range = {begin, begin + step};
      merged.push_back(status);
      begin = begin + step;
      for (std::size_t i = 0; i < left_.size(); ++i) advance(i, step);
    }
    return merged;
  }

 private:
  ExportStatus current() const {
    ExportStatus status;
    status.dirty = choice_.source == Changes::Source::None;
    for (std::size_t i = 0; i < answers_.size(); ++i) {
      const std::uint32_t flags = answers_[i][next_[i]].flags;
      if (choice_.contexts[i] == kAllocation) {
        status.zero = (flags & kAllocationZero) != 0;
      } else if (choice_.source == Changes::Source::DirtyBitmap) {
        status.dirty = (flags & kBitmapDirty) != 0;
      } else {
        status.dirty = flags == kDepthActiveLayer;
      }
    }
    return status;
  }

  void advance(std::size_t i, std::uint64_t step) {
    left_[i] -= step;
    if (left_[i] == 0 && ++next_[i] < answers_[i].size()) left_[i] = answers_[i][next_[i]].length;
  }

  const Choice& choice_;
  const std::vector<std::vector<ContextExtent>>& answers_;
  std::vector<std::size_t> next_;
  std::vector<std::uint64_t> left_;  // of each context's current extent
};

// What two answers to one question agree on: zero where both say so, dirty where either does.
std::vector<ExportStatus> agreed(const std::vector<ExportStatus>& first,
                                 const std::vector<ExportStatus>& second) {
  std::vector<ExportStatus> both;
  auto a = first.begin();
  auto b = second.begin();
  while (a != first.end() && b != second.end()) {
    const ExportStatus piece{intersect(a->range, b->range), a->zero && b->zero, a->dirty || b->dirty};
    if (!both.empty() && both.back().zero == piece.zero && both.back().dirty == piece.dirty) {
      both.back().range.end = piece.range.end;
    } else {
      both.push_back(piece);
    }
    const GuestOffset end = piece.range.end;
    if (a->range.end == end) ++a;
    if (b->range.end == end) ++b;
  }
  return both;
}

std::vector<ExportStatus> clipped(const std::vector<ExportStatus>& list, const GuestRange& range) {
  std::vector<ExportStatus> inside;
  for (const ExportStatus& status : list) {
    const GuestRange common = intersect(status.range, range);
    if (!common.empty()) inside.push_back({common, status.zero, status.dirty});
  }
  return inside;
}

}  // namespace

struct NbdExportState {
  NbdExportState(const NbdTarget& nbd_target, const Changes& changes)
      : target(nbd_target), witness(nbd_target, [&](const std::vector<std::string>& offered) {
          choice.emplace(nbd_target.uri, changes, offered);
          return choice->contexts;
        }) {
    for (const std::string& context : choice->contexts) {
      if (!witness.has_context(context)) {
        throw Error(Outcome::Io,
                    fmt::format("{}: the server offered {} and then refused it", target.uri, context));
      }
    }
  }

  std::unique_ptr<NbdConnection> connect(milliseconds timeout) const {
    return std::make_unique<NbdConnection>(with_timeout(target, timeout), no_contexts);
  }

  // The witness is gone: was the server replaced, or is it not there any more?
  [[noreturn]] void throw_lost(const std::string& reason) const {
    const bool replaced = [&] {
      try {
        connect(kUninvitedTimeout);
        return true;
      } catch (const Error&) {
        return false;
      }
    }();
    if (replaced) {
      throw Error(Outcome::Inconclusive,
                  fmt::format("{}: the connection was lost and the server answers again: it may be "
                              "another job by now; begin anew ({})",
                              target.uri, reason));
    }
    throw Error(Outcome::Io, fmt::format("{}: the server is gone: {}", target.uri, reason));
  }

  std::vector<ExportStatus> ask(const GuestRange& range) {
    try {
      return StatusMerger(*choice, witness.block_status(range, choice->contexts)).merge(range.begin);
    } catch (const Error& error) {
      if (error.outcome() == Outcome::Io && witness.is_dead()) throw_lost(error.what());
      throw;
    }
  }

  // The server is asked in its blocks. A block that the answer ends in is data, and may have changed.
  std::vector<ExportStatus> ask_in_blocks(const GuestRange& range) {
    const std::uint64_t block = witness.minimum_block();
    const std::uint64_t begin = align_down(range.begin.bytes(), block);
    const std::uint64_t end = std::min(align_up(range.end.bytes(), block), witness.size());
    std::vector<ExportStatus> answer = clipped(ask(guest_range(begin, end - begin)), range);
    if (answer.empty()) {
      answer.push_back({{range.begin, std::min(range.end, GuestOffset(begin + block))}, false, true});
    }
    return answer;
  }

  const NbdTarget target;
  std::optional<Choice> choice;
  NbdConnection witness;
  std::mutex witness_in_use;
  std::uint64_t status_length = kMaxStatusLength;  // how much to ask about at a time
  std::atomic<bool> has_reader{false};
  std::atomic<Clock::duration> last_read{};
};

class NbdReader : public Reader {
 public:
  // Without a connection of its own, the reader shares the witness.
  NbdReader(NbdExportState& state, std::unique_ptr<NbdConnection> own)
      : state_(state), own_(std::move(own)), unit_(std::max(state.witness.minimum_block(), kSectorSize)) {}

  void read(std::span<const ReadRequest> batch) override {
    const std::vector<FailedRead> failed = read_over_losses({batch.begin(), batch.end()});
    if (!failed.empty()) narrow_down(failed);
  }

 private:
  NbdConnection& connection() { return own_ ? *own_ : state_.witness; }

  // Reads as far as the server lets us; what it refuses comes back. A lost connection is made again.
  std::vector<FailedRead> read_over_losses(std::vector<ReadRequest> todo) {
    for (unsigned losses = 0;;) {
      std::vector<FailedRead> failed = try_to_read(todo);
      if (!connection().is_dead() || failed.empty()) return failed;
      if (failed.size() < todo.size()) losses = 0;
      reconnect(++losses, failed.front().request.range());
      todo.clear();
      for (const FailedRead& failure : failed) todo.push_back(failure.request);
    }
  }

  std::vector<FailedRead> try_to_read(const std::vector<ReadRequest>& todo) {
    std::unique_lock<std::mutex> lock;
    if (!own_) lock = std::unique_lock(state_.witness_in_use);
    std::vector<FailedRead> failed = connection().read(todo);
    state_.last_read = Clock::now().time_since_epoch();
    return failed;
  }

  // Tries again what was refused, and halves what is refused again, from the lowest offset on. What is left
  // cannot be read: throws, naming it. Returns where the errors were of the passing kind.
  void narrow_down(const std::vector<FailedRead>& failed) {
    std::vector<ReadRequest> todo;  // the next one last
    for (const FailedRead& failure : failed) todo.push_back(failure.request);
    std::ranges::sort(todo, std::greater(), &ReadRequest::begin);
    Extents unreadable;
    int error_number = 0;
    while (!todo.empty() && unreadable.size() < kMaxUnreadable) {
      const ReadRequest request = todo.back();
      todo.pop_back();
      const std::vector<FailedRead> again = read_over_losses({request});
      if (again.empty()) continue;
      const GuestRange blocks = enclosing_blocks(request.range());
      if (blocks.length() <= unit_) {
        unreadable.push_back({blocks, Kind::Data});
        error_number = again.front().error_number;
        continue;
      }
      const GuestOffset middle(align_up(blocks.begin.bytes() + blocks.length() / 2, unit_));
      const std::size_t lower = middle - request.begin;
      todo.push_back({middle, request.into.subspan(lower)});
      todo.push_back({request.begin, request.into.first(lower)});
    }
    if (unreadable.empty()) return;
    const Extents merged = collect(stream(unreadable));
    throw ReadError(fmt::format("{}: cannot read bytes {}{}", state_.target.uri,
                                to_string(merged.front().range), merged.size() > 1 ? " and others" : ""),
                    error_number);
  }

  GuestRange enclosing_blocks(const GuestRange& range) const {
    return {GuestOffset(align_down(range.begin.bytes(), unit_)),
            GuestOffset(std::min(align_up(range.end.bytes(), unit_), state_.witness.size()))};
  }

  void reconnect(unsigned losses, const GuestRange& lost) {
    const std::string what = fmt::format("connection lost while reading {}", to_string(lost));
    if (!own_) state_.throw_lost(what);
    for (;; ++losses) {
      if (losses > kMaxLosses) {
        throw Error(Outcome::Io, fmt::format("{}: {}, {} times", state_.target.uri, what, losses));
      }
      throw_if_interrupted();
      std::this_thread::sleep_for(kFirstPause * (1U << losses));
      try {
        own_ = state_.connect(state_.target.timeout);
        break;
      } catch (const Error& error) {
        if (error.outcome() != Outcome::Io || losses == kMaxLosses) throw;
      }
    }
    if (own_->size() != state_.witness.size()) {
      throw Error(Outcome::Inconclusive,
                  fmt::format("{}: had {} bytes and has {} after a lost connection: it is another "
                              "export by now; begin anew",
                              state_.target.uri, state_.witness.size(), own_->size()));
    }
  }

  NbdExportState& state_;
  std::unique_ptr<NbdConnection> own_;
  const std::uint64_t unit_;  // the smallest range that is called unreadable
};

NbdExport::NbdExport(const NbdTarget& target, const Changes& changes)
    : state_(std::make_unique<NbdExportState>(target, changes)) {}
NbdExport::~NbdExport() = default;

std::string NbdExport::name() const { return state_->target.uri; }
std::uint64_t NbdExport::size() const { return state_->witness.size(); }
const std::vector<std::string>& NbdExport::offered_bitmaps() const { return state_->choice->bitmaps; }
const std::string& NbdExport::bitmap() const { return state_->choice->bitmap; }
bool NbdExport::is_read_only() const { return state_->witness.is_read_only(); }
std::string NbdExport::export_name() const { return {}; }
bool NbdExport::has_allocation() const { return contains(state_->choice->contexts, kAllocation); }

std::vector<ExportStatus> NbdExport::status(const GuestRange& range) {
  if (state_->choice->contexts.empty()) return {{range, false, true}};
  const std::lock_guard lock(state_->witness_in_use);
  const GuestRange asked = guest_range(range.begin.bytes(), std::min(range.length(), state_->status_length));
  const std::vector<ExportStatus> first = state_->ask_in_blocks(asked);
  // A fragmented disk is asked about in smaller pieces, so that the server does not say what is dropped here.
  const std::uint64_t answered = first.back().range.end - range.begin;
  state_->status_length = std::clamp(align_down(2 * answered, kMaxBlock), kMinStatusLength, kMaxStatusLength);
  if (std::ranges::none_of(first, [](const ExportStatus& status) { return status.zero; })) return first;
  // A zero is believed when it is said twice. The server looks for the block in its scratch file and
  // then at the live disk; between the two looks the guest may have zeroed it. By the second answer
  // the old data is in the scratch file.
  std::vector<ExportStatus> second;
  for (GuestRange rest{range.begin, first.back().range.end}; !rest.empty();) {
    std::ranges::copy(state_->ask_in_blocks(rest), std::back_inserter(second));
    rest.begin = second.back().range.end;
  }
  return agreed(first, second);
}

Extents NbdExport::extents(const GuestRange& range) {
  Extents extents;
  for (const ExportStatus& status : status(range)) {
    const Kind changed = status.zero ? Kind::Zero : Kind::Data;
    qchain::append(extents, {status.range, status.dirty ? changed : Kind::Inherit});
  }
  return extents;
}

std::unique_ptr<Reader> NbdExport::open_reader() {
  const bool first = !state_->has_reader.exchange(true);
  const bool invited = state_->witness.can_multi_conn();
  std::unique_ptr<NbdConnection> own;
  if (invited || !first) {
    try {
      own = state_->connect(invited ? state_->target.timeout : kUninvitedTimeout);
    } catch (const Error& error) {
      if (error.outcome() != Outcome::Io) throw;
    }
    if (own && own->size() != state_->witness.size()) own.reset();
    if (!own && !first) return nullptr;
  }
  return std::make_unique<NbdReader>(*state_, std::move(own));
}

std::unique_ptr<Reader> NbdExport::witness_reader() { return std::make_unique<NbdReader>(*state_, nullptr); }

unsigned NbdExport::useful_readers() {
  // What a reader does with a piece takes about as long: waiting for that long leaves another one's room.
  constexpr std::chrono::microseconds kWork{1000};
  constexpr int kProbes = 2;  // the first one may wait for a disk
  const std::lock_guard lock(state_->witness_in_use);
  NbdConnection& witness = state_->witness;
  std::vector<std::byte> sector(std::min(witness.size(), std::max(witness.minimum_block(), kSectorSize)));
  Clock::duration latency = Clock::duration::max();
  for (int i = 0; i < kProbes; ++i) {
    const ReadRequest probe{GuestOffset(0), sector};
    const Clock::time_point begin = Clock::now();
    if (!witness.read(std::span(&probe, 1)).empty()) return default_workers();  // its errors are for others
    latency = std::min(latency, Clock::now() - begin);
  }
  const auto waiting = static_cast<std::uint64_t>(latency / kWork);
  return static_cast<unsigned>(std::min<std::uint64_t>(kMaxWorkers, default_workers() * (1 + waiting)));
}

void NbdExport::confirm() {
  const Clock::time_point settled = Clock::time_point(state_->last_read.load()) + kEndOfJob;
  std::this_thread::sleep_until(settled);
  const std::lock_guard lock(state_->witness_in_use);
  std::array<std::byte, kSectorSize> sector{};
  const std::uint64_t length = std::min<std::uint64_t>(sector.size(), size());
  const ReadRequest probe{GuestOffset(0), std::span(sector).first(length)};
  const bool answered = state_->witness.read(std::span(&probe, 1)).empty();
  // An error in that sector is an answer too: it is the connection that counts.
  if (!answered && state_->witness.is_dead()) {
    throw Error(Outcome::Inconclusive,
                fmt::format("{}: the export ended before the work was done: what was read may not be "
                            "of one point in time; begin anew",
                            name()));
  }
}

bool is_nbd_uri(const std::string& name) {
  constexpr std::array<std::string_view, 7> kSchemes{
      "nbd:", "nbds:", "nbd+unix:", "nbds+unix:", "nbd+vsock:", "nbds+vsock:", "nbd+ssh:"};
  return std::ranges::any_of(kSchemes, [&](std::string_view scheme) { return name.starts_with(scheme); });
}

}  // namespace qchain
