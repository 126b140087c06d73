#include "extent/nbd_export_state.h"

#include <fmt/format.h>

#include <algorithm>

#include "extent/error.h"

namespace qchain {

namespace {

using std::chrono::milliseconds;

// To find out whether a server answers at all.
constexpr milliseconds kProbeTimeout{1000};

// Limits the handshake only: once connected, the server has the whole time-out for each answer.
NbdTarget with_connect_timeout(NbdTarget target, milliseconds timeout) {
  target.connect_timeout = std::min(target.connect_timeout, timeout);
  return target;
}

}  // namespace

NbdExportState::NbdExportState(const NbdTarget& nbd_target, const Changes& changes)
    : target(nbd_target), control(nbd_target, [&](const std::vector<std::string>& offered) {
        choice.emplace(nbd_target.uri, changes, offered);
        return choice->contexts;
      }) {
  for (const std::string& context : choice->contexts) {
    if (!control.has_context(context)) {
      throw Error(Outcome::Io,
                  fmt::format("{}: the server offered {} and then refused it", target.uri, context));
    }
  }
}

NbdExportState::Connection NbdExportState::reconnect() {
  const std::lock_guard lock(connecting_);
  const Clock::time_point begin = Clock::now();
  // Each reader counts its own attempts. If each takes long, those of all readers would add up.
  if (unreachable_since_ &&
      begin - *unreachable_since_ > kMaxLosses * (target.timeout + std::chrono::seconds(1))) {
    throw Error(Outcome::Io, fmt::format("{}: the server has not been reachable for {}", target.uri,
                                         to_string(std::chrono::duration_cast<std::chrono::seconds>(
                                             begin - *unreachable_since_))));
  }
  try {
    Connection connection = std::make_unique<NbdConnection>(target);
    unreachable_since_.reset();
    return connection;
  } catch (const Error&) {
    if (!unreachable_since_) unreachable_since_ = begin;
    throw;
  }
}

NbdExportState::Connection NbdExportState::connect_further(milliseconds timeout) {
  const std::lock_guard lock(connecting_);
  if (no_more_connections_) return nullptr;
  try {
    auto connection = std::make_unique<NbdConnection>(with_connect_timeout(target, timeout));
    if (connection->size() == control.size()) return connection;
  } catch (const Error& error) {
    if (error.outcome() != Outcome::Io) throw;
  }
  no_more_connections_ = true;  // each further attempt could take as long
  return nullptr;
}

void NbdExportState::throw_lost(const std::string& what) {
  const std::string reason = control.reason();
  if (control.timed_out()) throw Error(Outcome::Io, fmt::format("{}: {}: {}", target.uri, what, reason));
  const bool answers = [&] {
    try {
      const std::lock_guard lock(connecting_);
      NbdConnection(with_connect_timeout(target, kProbeTimeout));
      return true;
    } catch (const Error&) {
      return false;
    }
  }();
  if (answers) {
    throw Error(Outcome::Inconclusive,
                fmt::format("{}: the connection was lost, and the server that answers now may serve another "
                            "job; start over ({}: {})",
                            target.uri, what, reason));
  }
  throw Error(Outcome::Io,
              fmt::format("{}: the server cannot be reached any more: {}: {}", target.uri, what, reason));
}

std::vector<ExportStatus> NbdExportState::query(const GuestRange& range) {
  const std::string what = fmt::format("block status of {}", to_string(range));
  if (control.is_dead()) throw_lost(what);
  for (unsigned failures = 0;;) {
    try {
      const auto answers = control.block_status(range, choice->contexts);
      failed_requests += failures;
      return merged_status(*choice, answers, range.begin);
    } catch (const Error& error) {
      if (error.outcome() != Outcome::Io) throw;
      if (control.is_dead()) throw_lost(what);
      if (++failures == kMaxAttempts) throw;
    }
  }
}

std::vector<ExportStatus> NbdExportState::query_blocks(const GuestRange& range) {
  const std::uint64_t block = control.minimum_block();
  const std::uint64_t begin = align_down(range.begin.bytes(), block);
  const std::uint64_t end = std::min(align_up(range.end.bytes(), block), control.size());
  std::vector<ExportStatus> answer = clipped_status(query(guest_range(begin, end - begin)), range);
  if (answer.empty()) {
    answer.push_back({{range.begin, std::min(range.end, GuestOffset(begin + block))}, false, true});
  }
  return answer;
}

}  // namespace qchain
