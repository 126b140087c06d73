#include "extent/background_writes.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>

#include "extent/error.h"

namespace qchain {

void WriteList::add(HostOffset at, std::span<const std::byte> bytes) {
  if (writes_.empty() || end_ != at) writes_.push_back({at, {}});
  end_ = at + bytes.size();
  std::vector<iovec>& parts = writes_.back().parts;
  std::byte* const data = const_cast<std::byte*>(bytes.data());  // a write only reads it
  if (!parts.empty() && static_cast<std::byte*>(parts.back().iov_base) + parts.back().iov_len == data) {
    parts.back().iov_len += bytes.size();
  } else {
    parts.push_back({data, bytes.size()});
  }
}

std::vector<FileWrite> WriteList::take() { return std::exchange(writes_, {}); }

namespace {

std::uint64_t length_of(const FileWrite& write) {
  return std::accumulate(write.parts.begin(), write.parts.end(), std::uint64_t{0},
                         [](std::uint64_t sum, const iovec& part) { return sum + part.iov_len; });
}

// The cache takes it; that it goes on to the disk soon leaves less for the end.
void write_at_once(const File& file, FileWrite& write) {
  const std::uint64_t length = length_of(write);
  file.write(write.offset, write.parts);
  file.begin_sync(write.offset, length);
}

}  // namespace

WriteQueue::~WriteQueue() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  begun_.notify_one();
  if (collector_.joinable()) collector_.join();
  if (context_ != nullptr) io_destroy(context_);
}

bool WriteQueue::is_usable() {
  const std::lock_guard lock(mutex_);
  if (!std::exchange(asked_for_context_, true)) {
    if (io_setup(static_cast<int>(kMaxUnderWay), &context_) != 0) context_ = nullptr;
    if (context_ != nullptr) collector_ = std::jthread([this] { collect(); });
  }
  return context_ != nullptr;
}

void WriteQueue::add(BackgroundWrites& owner) {
  const std::lock_guard lock(mutex_);
  for (Command& command : owner.commands_) {
    FileWrite& write = command.write;
    io_prep_pwritev(&command.control, file_.descriptor_past_cache(write.offset, write.parts),
                    write.parts.data(), static_cast<int>(write.parts.size()),
                    static_cast<long long>(write.offset.bytes()));
    command.control.data = &command;
    waiting_.push_back(&command);
    ++owner.unfinished_;
  }
  submit();
  begun_.notify_one();
}

void WriteQueue::wait_for(BackgroundWrites& owner) {
  std::unique_lock lock(mutex_);
  owner.finished_.wait(lock, [&] { return owner.unfinished_ == 0; });
}

// As many as may be under way.
void WriteQueue::submit() {
  for (;;) {
    std::array<iocb*, kMaxUnderWay> some;
    std::size_t count = 0;
    std::uint64_t bytes = bytes_under_way_;
    while (count < waiting_.size() && under_way_ + count < kMaxUnderWay) {
      Command& next = *waiting_[count];
      if (under_way_ + count > 0 && bytes + next.length > kMaxBytesUnderWay) break;
      bytes += next.length;
      some[count++] = &next.control;
    }
    if (count == 0) return;
    submit_some(std::span(some).first(count));
  }
}

void WriteQueue::submit_some(std::span<iocb*> some) {
  const int accepted = io_submit(context_, static_cast<long>(some.size()), some.data());
  for (int i = 0; i < accepted; ++i) {
    ++under_way_;
    bytes_under_way_ += waiting_.front()->length;
    waiting_.pop_front();
  }
  if (accepted > 0 || accepted == -EINTR) return;
  Command& refused = *waiting_.front();
  waiting_.pop_front();
  finish(refused, 0);
}

// The thread that learns what is written.
void WriteQueue::collect() {
  std::array<io_event, kMaxUnderWay> events;
  std::unique_lock lock(mutex_);
  for (;;) {
    begun_.wait(lock, [&] { return under_way_ > 0 || ending_; });
    if (under_way_ == 0) return;
    lock.unlock();
    const int count = io_getevents(context_, 1, static_cast<long>(events.size()), events.data(), nullptr);
    lock.lock();
    if (count == -EINTR) continue;
    // Not to be expected; but who cannot tell what is written must not go on.
    if (count < 0) {
      throw system_error(fmt::format("{}: cannot learn what became of a write", file_.path()), -count);
    }
    for (const io_event& event : std::span(events).first(static_cast<std::size_t>(count))) {
      Command& command = *static_cast<Command*>(event.data);
      --under_way_;
      bytes_under_way_ -= command.length;
      const auto result = static_cast<std::int64_t>(event.res);
      finish(command, static_cast<std::uint64_t>(std::max<std::int64_t>(0, result)));
    }
    submit();
  }
}

// What was not written, for whatever reason, is written at once: that tells the reason, if there is one.
void WriteQueue::finish(Command& command, std::uint64_t written) {
  const HostOffset offset = command.write.offset + written;
  std::span<iovec> rest = command.write.parts;
  while (!rest.empty() && written >= rest.front().iov_len) {
    written -= rest.front().iov_len;
    rest = rest.subspan(1);
  }
  BackgroundWrites& owner = *command.owner;
  if (!rest.empty()) {
    rest.front().iov_base = static_cast<std::byte*>(rest.front().iov_base) + written;
    rest.front().iov_len -= written;
    try {
      file_.write(offset, rest);
    } catch (...) {
      if (!owner.error_) owner.error_ = std::current_exception();
    }
  }
  if (--owner.unfinished_ == 0) owner.finished_.notify_one();
}

BackgroundWrites::~BackgroundWrites() {
  try {
    wait();
  } catch (...) {  // told by the wait() of who wanted to know
  }
}

void BackgroundWrites::start(std::vector<FileWrite> writes) {
  wait();
  for (FileWrite& write : writes) {
    if (queue_.file_.descriptor_past_cache(write.offset, write.parts) >= 0 && queue_.is_usable()) {
      const std::uint64_t length = length_of(write);
      commands_.push_back({.write = std::move(write), .length = length, .owner = this});
    } else {
      write_at_once(queue_.file_, write);
    }
  }
  queue_.add(*this);
}

void BackgroundWrites::wait() {
  queue_.wait_for(*this);
  commands_.clear();
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

}  // namespace qchain
