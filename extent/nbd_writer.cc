#include "extent/nbd_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "extent/error.h"

namespace qchain {

namespace {

// Two threads must not write to one block: pieces of work are cut at this size, so no block may be larger.
constexpr std::uint64_t kMaxBlock = std::uint64_t{64} << 10;

// A server that has enough connections can keep a further one waiting for ever.
constexpr std::chrono::milliseconds kConnectTimeout{2000};

}  // namespace

NbdWriter::NbdWriter(const NbdTarget& target) : target_(target) {
  auto first = std::make_unique<NbdConnection>(target_);
  if (first->is_read_only()) {
    throw Error(Outcome::Usage, fmt::format("{}: the export is read-only", target.uri));
  }
  if (first->minimum_block() > kMaxBlock) {
    throw Error(Outcome::Io, fmt::format("{}: the export's minimum block size is {} bytes; at most {} "
                                         "are supported",
                                         target.uri, first->minimum_block(), kMaxBlock));
  }
  size_ = first->size();
  idle_.reserve(connections_);
  may_connect_ = first->can_multi_conn();
  idle_.push_back(std::move(first));
}

void NbdWriter::write(std::span<const WriteRequest> batch) {
  Connection connection = take();
  touched_ = true;
  try {
    connection->write(batch);
  } catch (...) {
    give_back(std::move(connection));  // other threads may be waiting for it, and have to see the failure
    throw;
  }
  give_back(std::move(connection));
}

std::unique_ptr<TargetWriter> NbdWriter::open_writer() {
  return synchronous_writer([this](std::span<const WriteRequest> batch) { write(batch); });
}

void NbdWriter::sync() {
  for (const Connection& connection : idle_) connection->flush();
}

NbdWriter::Connection NbdWriter::take() {
  std::unique_lock lock(in_use_);
  if (idle_.empty() && may_connect_) {
    lock.unlock();
    if (Connection further = connect_further()) return further;
    lock.lock();
  }
  given_back_.wait(lock, [&] { return !idle_.empty(); });
  Connection connection = std::move(idle_.back());
  idle_.pop_back();
  return connection;
}

// Null if no further connection is available. One attempt at a time, and none after a failure: each could
// take long.
NbdWriter::Connection NbdWriter::connect_further() {
  const std::lock_guard one_at_a_time(connecting_);
  {
    const std::lock_guard lock(in_use_);
    if (!may_connect_) return nullptr;
  }
  try {
    NbdTarget further = target_;
    further.connect_timeout = std::min(further.connect_timeout, kConnectTimeout);
    auto connection = std::make_unique<NbdConnection>(further);
    if (connection->size() == size_ && !connection->is_read_only()) {
      const std::lock_guard lock(in_use_);
      idle_.reserve(connections_ + 1);  // give_back() must not fail: other threads may wait for it
      ++connections_;
      return connection;
    }
  } catch (const Error& error) {
    if (error.outcome() != Outcome::Io) throw;
  }
  const std::lock_guard lock(in_use_);
  may_connect_ = false;
  return nullptr;
}

void NbdWriter::give_back(Connection connection) {
  const std::lock_guard lock(in_use_);
  idle_.push_back(std::move(connection));
  given_back_.notify_one();
}

}  // namespace qchain
