#include "extent/nbd_export.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <iterator>
#include <mutex>
#include <string_view>
#include <thread>
#include <utility>

#include "extent/engine.h"
#include "extent/error.h"
#include "extent/nbd_export_state.h"
#include "extent/nbd_reader.h"

namespace qchain {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// The count of a block status request has 32 bits; this is the largest that every block size divides.
constexpr std::uint64_t kMaxStatusLength = std::uint64_t{2} << 30;
constexpr std::uint64_t kMinStatusLength = std::uint64_t{64} << 20;
constexpr std::uint64_t kMaxBlock = std::uint64_t{64} << 20;  // no server's block is larger

// A server that does not advertise several connections may keep a second one waiting for ever.
constexpr milliseconds kUninvitedTimeout{1000};

// How long the end of a pull job can go unnoticed: the server still answers, but no longer with the content
// of the point in time. confirm() waits this long after the last read.
constexpr milliseconds kEndOfJob{100};

}  // namespace

NbdExport::NbdExport(const NbdTarget& target, const Changes& changes)
    : state_(std::make_unique<NbdExportState>(target, changes)) {
  state_->status_length = kMaxStatusLength;
}
NbdExport::~NbdExport() = default;

std::string NbdExport::name() const { return state_->target.uri; }
std::uint64_t NbdExport::size() const { return state_->control.size(); }
bool NbdExport::is_read_only() const { return state_->control.is_read_only(); }
std::string NbdExport::export_name() const { return state_->control.export_name(); }
const std::vector<std::string>& NbdExport::offered_bitmaps() const { return state_->choice->bitmaps; }
const std::string& NbdExport::bitmap() const { return state_->choice->bitmap; }
bool NbdExport::has_allocation() const { return state_->choice->has_allocation(); }
Recovered NbdExport::recovered() const { return {state_->failed_requests, state_->reconnects}; }

std::vector<ExportStatus> NbdExport::status(const GuestRange& range) {
  if (state_->choice->contexts.empty()) return {{range, false, true}};
  const std::lock_guard lock(state_->control_in_use);
  const GuestRange asked = guest_range(range.begin.bytes(), std::min(range.length(), state_->status_length));
  const std::vector<ExportStatus> first = state_->query_blocks(asked);
  // Smaller queries for a fragmented disk, so that the server does not send extents that are dropped here.
  const std::uint64_t answered = first.back().range.end - range.begin;
  state_->status_length = std::clamp(align_down(2 * answered, kMaxBlock), kMinStatusLength, kMaxStatusLength);
  if (std::ranges::none_of(first, [](const ExportStatus& status) { return status.zero; })) return first;
  // Zeros are accepted when they are reported twice. The server looks up the block in its scratch file and
  // then on the live disk; between the two, the guest may have zeroed it. By the second answer the old data
  // is in the scratch file.
  std::vector<ExportStatus> second;
  for (GuestRange rest{range.begin, first.back().range.end}; !rest.empty();) {
    std::ranges::copy(state_->query_blocks(rest), std::back_inserter(second));
    rest.begin = second.back().range.end;
  }
  return agreed_status(first, second);
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
  const bool invited = state_->control.can_multi_conn();
  NbdExportState::Connection own;
  if (invited || !first) {
    own = state_->connect_further(invited ? state_->target.timeout : kUninvitedTimeout);
    if (!own && !first) return nullptr;
  }
  return std::make_unique<NbdReader>(*state_, std::move(own));
}

std::unique_ptr<Reader> NbdExport::control_reader() { return std::make_unique<NbdReader>(*state_, nullptr); }

unsigned NbdExport::useful_readers() {
  // About as long as a reader works on a piece: while it waits that long, another one can work.
  constexpr std::chrono::microseconds kWork{1000};
  constexpr int kProbes = 2;  // the first one may wait for a disk
  const std::lock_guard lock(state_->control_in_use);
  NbdConnection& control = state_->control;
  std::vector<std::byte> sector(std::min(control.size(), std::max(control.minimum_block(), kSectorSize)));
  Clock::duration latency = Clock::duration::max();
  for (int i = 0; i < kProbes; ++i) {
    const ReadRequest probe{GuestOffset(0), sector};
    const Clock::time_point begin = Clock::now();
    if (!control.read(std::span(&probe, 1)).empty()) return default_workers();  // readers report errors
    latency = std::min(latency, Clock::now() - begin);
  }
  const auto waiting = static_cast<std::uint64_t>(latency / kWork);
  return static_cast<unsigned>(std::min<std::uint64_t>(kMaxWorkers, default_workers() * (1 + waiting)));
}

void NbdExport::confirm() {
  std::this_thread::sleep_until(Clock::time_point(state_->last_read.load()) + kEndOfJob);
  const std::lock_guard lock(state_->control_in_use);
  std::array<std::byte, kSectorSize> sector{};
  const std::uint64_t length = std::min<std::uint64_t>(sector.size(), size());
  const ReadRequest probe{GuestOffset(0), std::span(sector).first(length)};
  // A read error is an answer too: only the connection matters.
  state_->control.read(std::span(&probe, 1));
  if (!state_->control.is_dead()) return;
  if (state_->control.timed_out()) {
    throw Error(Outcome::Io, fmt::format("{}: cannot confirm that the export is still the same one: {}",
                                         name(), state_->control.reason()));
  }
  throw Error(Outcome::Inconclusive,
              fmt::format("{}: the export ended before the work was done: what was read may not be from one "
                          "point in time; start over",
                          name()));
}

bool is_nbd_uri(const std::string& name) {
  constexpr std::array<std::string_view, 7> kSchemes{
      "nbd:", "nbds:", "nbd+unix:", "nbds+unix:", "nbd+vsock:", "nbds+vsock:", "nbd+ssh:"};
  return std::ranges::any_of(kSchemes, [&](std::string_view scheme) { return name.starts_with(scheme); });
}

}  // namespace qchain
