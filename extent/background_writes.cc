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

// Through the page cache. Starting writeback at once leaves less for the sync at the end.
void write_synchronously(const File& file, FileWrite& write) {
  const std::uint64_t length = length_of(write);
  file.write(write.offset, write.parts);
  file.begin_sync(write.offset, length);
}

}  // namespace

void WriteQueue::CommandList::push(Command& command) noexcept {
  command.next = nullptr;
  (first_ == nullptr ? first_ : last_->next) = &command;
  last_ = &command;
}

WriteQueue::Command& WriteQueue::CommandList::pop() noexcept { return *std::exchange(first_, first_->next); }

WriteQueue::~WriteQueue() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  submitted_.notify_one();
  if (collector_.joinable()) collector_.join();
  if (context_ != nullptr) io_destroy(context_);
}

bool WriteQueue::is_usable() noexcept {
  const std::lock_guard lock(mutex_);
  if (!std::exchange(set_up_tried_, true)) set_up();
  return context_ != nullptr;
}

// Called with the lock held; the new thread takes it before anything else. context_ is set only once there is
// a thread that collects its completions.
void WriteQueue::set_up() noexcept {
  io_context_t context = nullptr;
  if (calls_.set_up(static_cast<int>(kMaxInFlight), &context) != 0) return;
  try {
    collector_ = calls_.start([this] { collect(); });
    context_ = context;
  } catch (...) {  // no thread, or no memory for one: writes are synchronous
    io_destroy(context);
  }
}

void WriteQueue::add(BackgroundWrites& owner) {
  const std::lock_guard lock(mutex_);
  for (Command& command : owner.commands_) {
    FileWrite& write = command.write;
    io_prep_pwritev(&command.control, file_.direct_descriptor(write.offset, write.parts), write.parts.data(),
                    static_cast<int>(write.parts.size()), static_cast<long long>(write.offset.bytes()));
    command.control.data = &command;
    waiting_.push(command);
    ++owner.unfinished_;
  }
  submit();
  submitted_.notify_one();
}

void WriteQueue::wait_for(BackgroundWrites& owner) {
  std::unique_lock lock(mutex_);
  owner.finished_.wait(lock, [&] { return owner.unfinished_ == 0; });
}

// Submits as many waiting commands as may be in flight.
void WriteQueue::submit() {
  while (context_ == nullptr && !waiting_.empty()) finish(waiting_.pop(), 0);  // it failed meanwhile
  for (;;) {
    std::array<iocb*, kMaxInFlight> some;
    std::size_t count = 0;
    std::uint64_t bytes = bytes_in_flight_;
    for (Command* next = waiting_.first(); next != nullptr && in_flight_count_ + count < kMaxInFlight;
         next = next->next) {
      if (in_flight_count_ + count > 0 && bytes + next->length > kMaxBytesInFlight) break;
      bytes += next->length;
      some[count++] = &next->control;
    }
    if (count == 0) return;
    submit_some(std::span(some).first(count));
  }
}

void WriteQueue::submit_some(std::span<iocb*> some) {
  const int accepted = io_submit(context_, static_cast<long>(some.size()), some.data());
  for (int i = 0; i < accepted; ++i) {
    Command& command = waiting_.pop();
    command.slot = in_flight_count_;
    in_flight_[in_flight_count_++] = &command;
    bytes_in_flight_ += command.length;
  }
  if (accepted > 0 || accepted == -EINTR) return;
  finish(waiting_.pop(), 0);
}

WriteQueue::Command& WriteQueue::remove_in_flight(Command& command) noexcept {
  Command* const last = in_flight_[--in_flight_count_];
  in_flight_[command.slot] = last;
  last->slot = command.slot;
  bytes_in_flight_ -= command.length;
  return command;
}

// The completion thread. No exception may leave it: that would end the process.
void WriteQueue::collect() {
  try {
    collect_until_stopped();
  } catch (...) {
    const std::lock_guard lock(mutex_);
    fail_all(std::current_exception());
  }
}

void WriteQueue::collect_until_stopped() {
  std::array<io_event, kMaxInFlight> events;
  for (;;) {
    int count = 0;
    {
      std::unique_lock lock(mutex_);
      submitted_.wait(lock, [&] { return in_flight_count_ > 0 || stopping_; });
      if (in_flight_count_ == 0) return;
    }
    count = calls_.get_events(context_, 1, static_cast<long>(events.size()), events.data(), nullptr);
    if (count == -EINTR) continue;
    if (count < 0) {
      throw system_error(
          fmt::format("{}: cannot learn whether a write is complete (io_getevents)", file_.path()), -count);
    }
    const std::lock_guard lock(mutex_);
    for (const io_event& event : std::span(events).first(static_cast<std::size_t>(count))) {
      Command& command = remove_in_flight(*static_cast<Command*>(event.data));
      const auto result = static_cast<std::int64_t>(event.res);
      finish(command, static_cast<std::uint64_t>(std::max<std::int64_t>(0, result)));
    }
    submit();
  }
}

// Gives up the context. io_destroy() comes first: when it returns, no write is in flight any more, so the
// owners may reuse their buffers once they see the error.
void WriteQueue::fail_all(const std::exception_ptr& error) noexcept {
  io_destroy(std::exchange(context_, nullptr));
  while (in_flight_count_ > 0) finish_with(remove_in_flight(*in_flight_.front()), error);
  while (!waiting_.empty()) finish_with(waiting_.pop(), error);
}

// Writes synchronously what was not written, for whatever reason; an error is then reported with its cause.
void WriteQueue::finish(Command& command, std::uint64_t written) {
  const HostOffset offset = command.write.offset + written;
  std::span<iovec> rest = command.write.parts;
  while (!rest.empty() && written >= rest.front().iov_len) {
    written -= rest.front().iov_len;
    rest = rest.subspan(1);
  }
  std::exception_ptr error;
  if (!rest.empty()) {
    rest.front().iov_base = static_cast<std::byte*>(rest.front().iov_base) + written;
    rest.front().iov_len -= written;
    try {
      file_.write(offset, rest);
    } catch (...) {
      error = std::current_exception();
    }
  }
  finish_with(command, error);
}

// The owner destroys the command as soon as it wakes up.
void WriteQueue::finish_with(Command& command, const std::exception_ptr& error) noexcept {
  BackgroundWrites& owner = *command.owner;
  if (!owner.error_) owner.error_ = error;
  if (--owner.unfinished_ == 0) owner.finished_.notify_one();
}

BackgroundWrites::~BackgroundWrites() {
  try {
    wait();
  } catch (...) {  // a caller that needs the error calls wait()
  }
}

void BackgroundWrites::start(std::vector<FileWrite> writes) {
  wait();
  for (FileWrite& write : writes) {
    if (queue_.file_.direct_descriptor(write.offset, write.parts) >= 0 && queue_.is_usable()) {
      const std::uint64_t length = length_of(write);
      commands_.push_back({.write = std::move(write), .length = length, .owner = this});
    } else {
      write_synchronously(queue_.file_, write);
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
