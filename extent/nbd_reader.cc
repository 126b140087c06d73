#include "extent/nbd_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "extent/cancellation.h"
#include "extent/error.h"
#include "extent/extent.h"

namespace qchain {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kFirstPause{100};
// Failed requests while one read() is narrowed down: a failing disk can take seconds for each.
constexpr unsigned kMaxFailures = 20;
constexpr unsigned kMaxSearchFailures = 12;  // of these, for the ends of one unreadable range
constexpr std::size_t kMaxCompared = 4;      // sectors that are read through the control connection too

ReadRequest part_of(const ReadRequest& request, const GuestRange& range) {
  return {range.begin, request.into.subspan(range.begin - request.begin, range.length())};
}

}  // namespace

// Finds the unreadable range of a failed request by two binary searches, for the first and the last
// unreadable block. Everything outside has been read then; some blocks between them may be readable.
class NbdReader::Narrowing {
 public:
  explicit Narrowing(NbdReader& reader) : reader_(reader) {}

  /// Empty: the request was read after all.
  GuestRange narrow(const ReadRequest& request) {
    if (may_fail() && can_read(request, request.range())) return {};
    GuestRange bad = request.range();
    const unsigned most = std::min(kMaxFailures, failures_ + kMaxSearchFailures);
    GuestOffset upper = bad.end;  // some byte of [bad.begin, upper) cannot be read
    while (is_divisible({bad.begin, upper}) && failures_ < most) {
      const GuestOffset middle = middle_of({bad.begin, upper});
      (can_read(request, {bad.begin, middle}) ? bad.begin : upper) = middle;
    }
    if (upper < bad.end && failures_ < most) {
      if (can_read(request, {upper, bad.end})) {
        bad.end = upper;
      } else {
        GuestOffset lower = upper;  // some byte of [lower, bad.end) cannot be read
        while (is_divisible({lower, bad.end}) && failures_ < most) {
          const GuestOffset middle = middle_of({lower, bad.end});
          (can_read(request, {middle, bad.end}) ? bad.end : lower) = middle;
        }
      }
    }
    // This range may never have been requested by itself.
    for (unsigned i = 0; i < kMaxAttempts && may_fail(); ++i) {
      if (can_read(request, bad)) return {};
    }
    return blocks_of(bad);
  }

  unsigned failures() const { return failures_; }
  /// Why the last one failed.
  const FailedRead& last() const { return last_; }

 private:
  bool may_fail() const { return failures_ < kMaxFailures; }

  bool can_read(const ReadRequest& request, const GuestRange& range) {
    const std::vector<FailedRead> failed = reader_.read_over_losses({part_of(request, range)});
    if (failed.empty()) return true;
    ++failures_;
    last_ = failed.front();
    return false;
  }

  GuestRange blocks_of(const GuestRange& range) const {
    const std::uint64_t unit = reader_.unit_;
    return {GuestOffset(align_down(range.begin.bytes(), unit)),
            GuestOffset(std::min(align_up(range.end.bytes(), unit), reader_.state_.control.size()))};
  }
  bool is_divisible(const GuestRange& range) const { return blocks_of(range).length() > reader_.unit_; }
  GuestOffset middle_of(const GuestRange& range) const {
    const GuestRange blocks = blocks_of(range);
    return GuestOffset(align_up(blocks.begin.bytes() + blocks.length() / 2, reader_.unit_));
  }

  NbdReader& reader_;
  unsigned failures_ = 0;
  FailedRead last_;
};

NbdReader::NbdReader(NbdExportState& state, NbdExportState::Connection own)
    : state_(state), own_(std::move(own)), unit_(std::max(state.control.minimum_block(), kSectorSize)) {}

void NbdReader::read(std::span<const ReadRequest> batch) {
  const std::vector<FailedRead> failed = read_over_losses({batch.begin(), batch.end()});
  if (!failed.empty()) state_.failed_requests += failed.size() + narrow_down(failed);
  if (own_ && !batch.empty()) samples_.add(batch.front());
}

// Reads a list of requests and returns what failed. Reconnects after a loss.
std::vector<FailedRead> NbdReader::read_over_losses(std::vector<ReadRequest> todo) {
  bool reconnected = false;
  for (unsigned losses = 0;;) {
    std::vector<FailedRead> failed = try_to_read(todo);
    if (!connection().is_dead() || failed.empty()) {
      if (!reconnected || !failed.empty()) return failed;
      Samples samples;
      for (const ReadRequest& request : todo) {
        if (samples.size() < kMaxCompared) samples.push_back(sample_of(request));
      }
      compare_with_control(samples);
      return failed;
    }
    if (failed.size() < todo.size()) losses = 0;
    reconnect(losses, failed.front().request.range());
    reconnected = true;
    todo.clear();
    for (const FailedRead& failure : failed) todo.push_back(failure.request);
  }
}

std::vector<FailedRead> NbdReader::try_to_read(const std::vector<ReadRequest>& todo) {
  std::unique_lock<std::mutex> lock;
  if (!own_) lock = std::unique_lock(state_.control_in_use);
  std::vector<FailedRead> failed = connection().read(todo);
  state_.last_read = Clock::now().time_since_epoch();
  return failed;
}

// Retries what failed, from the lowest offset on. Throws ReadError, naming what cannot be read; returns the
// number of further failures if all of it was read in the end.
std::uint64_t NbdReader::narrow_down(const std::vector<FailedRead>& failed) {
  std::vector<ReadRequest> todo;
  for (const FailedRead& failure : failed) todo.push_back(failure.request);
  std::ranges::sort(todo, {}, &ReadRequest::begin);
  Narrowing narrowing(*this);
  Extents unreadable;
  for (const ReadRequest& request : todo) {
    const GuestRange bad = narrowing.narrow(request);
    if (!bad.empty()) append(unreadable, {bad, Kind::Data});
  }
  if (unreadable.empty()) return narrowing.failures();
  const FailedRead& last = narrowing.last();
  const std::string reason = last.reason != nullptr ? fmt::format(": {}", last.reason) : "";
  throw ReadError(
      fmt::format("{}: cannot read bytes {}{}{}", state_.target.uri, to_string(unreadable.front().range),
                  unreadable.size() > 1 ? " and others" : "", reason),
      last.error_number);
}

void NbdReader::reconnect(unsigned& losses, const GuestRange& lost) {
  const std::string what = to_string(lost);
  if (!own_) state_.throw_lost(fmt::format("reading {}", what));
  const std::string reason = own_->reason();
  const bool timed_out = own_->timed_out();
  for (;;) {
    if (++losses > kMaxLosses) {
      throw Error(Outcome::Io, timed_out ? fmt::format("{}: cannot read {}, tried {} times: {}",
                                                       state_.target.uri, what, losses, reason)
                                         : fmt::format("{}: connection lost while reading {}, {} times: {}",
                                                       state_.target.uri, what, losses, reason));
    }
    throw_if_cancelled();
    std::this_thread::sleep_for(kFirstPause * (1U << losses));
    try {
      own_ = state_.reconnect();
      if (is_same_export()) return;
    } catch (const Error& error) {
      if (error.outcome() != Outcome::Io || losses == kMaxLosses || state_.control.is_dead()) throw;
    }
  }
}

// The new connection may lead to another export of the same name and size, such as the next job's. So the
// control connection has to answer, and what was read before has to be unchanged. False if the new connection
// was lost meanwhile.
bool NbdReader::is_same_export() {
  if (own_->size() != state_.control.size()) {
    throw Error(Outcome::Inconclusive,
                fmt::format("{}: had {} bytes and has {} after a reconnect: the export is not the same one; "
                            "start over",
                            state_.target.uri, state_.control.size(), own_->size()));
  }
  Samples samples = samples_.all();
  if (samples.empty() && own_->size() > 0) {  // the first sector, as it is now
    ReadSamples::Sample first;
    first.length = std::min<std::uint64_t>(own_->size(), kSectorSize);
    const ReadRequest request{GuestOffset(0), std::span(first.bytes).first(first.length)};
    if (own_->read(std::span(&request, 1)).empty()) samples.push_back(first);
  } else {
    compare(samples, *own_, "what was read before");
  }
  if (own_->is_dead()) return false;
  while (samples.size() > kMaxCompared) {  // the first, the last, and some between
    std::size_t index = 0;
    const std::size_t last = samples.size() - 1;
    std::erase_if(samples, [&](const ReadSamples::Sample&) {
      const std::size_t i = index++;
      return i != last && i % 2 != 0;
    });
  }
  compare_with_control(samples);
  ++state_.reconnects;
  return true;
}

void NbdReader::compare_with_control(const Samples& samples) {
  const std::lock_guard lock(state_.control_in_use);
  if (!state_.control.is_dead()) compare(samples, state_.control, "what the control connection reads");
  if (state_.control.is_dead()) state_.throw_lost("comparing the export after a reconnect");
}

// What cannot be read through `connection` is not compared.
void NbdReader::compare(const Samples& samples, NbdConnection& connection, const char* which) const {
  Samples again = samples;
  std::vector<ReadRequest> requests;
  for (ReadSamples::Sample& sample : again) {
    requests.push_back({sample.begin, std::span(sample.bytes).first(sample.length)});
  }
  const std::vector<FailedRead> failed = connection.read(requests);
  for (std::size_t i = 0; i < samples.size(); ++i) {
    const GuestRange range = requests[i].range();
    const bool was_read = std::ranges::none_of(failed, [&](const FailedRead& failure) {
      return !intersect(failure.request.range(), range).empty();
    });
    if (!was_read || std::ranges::equal(samples[i].content(), again[i].content())) continue;
    throw Error(Outcome::Inconclusive,
                fmt::format("{}: the export is not the same one after a reconnect: {} differs from {}; start "
                            "over",
                            state_.target.uri, to_string(range), which));
  }
}

}  // namespace qchain
