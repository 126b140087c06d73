#include "extent/background_writes.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <numeric>
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

BackgroundWrites::~BackgroundWrites() {
  if (context_ != nullptr) io_destroy(context_);  // waits for what is under way
}

void BackgroundWrites::start(std::vector<FileWrite> writes) {
  wait();
  const auto at_once = std::partition(writes.begin(), writes.end(), [&](const FileWrite& write) {
    return file_.descriptor_past_cache(write.offset, write.parts) >= 0 && has_context();
  });
  for (auto write = at_once; write != writes.end(); ++write) write_at_once(*write);
  writes.erase(at_once, writes.end());
  writes_ = std::move(writes);
  commands_.resize(writes_.size());
  submitted_ = 0;
  for (std::size_t i = 0; i < writes_.size(); ++i) {
    const FileWrite& write = writes_[i];
    io_prep_pwritev(&commands_[i], file_.descriptor_past_cache(write.offset, write.parts), write.parts.data(),
                    static_cast<int>(write.parts.size()), static_cast<long long>(write.offset.bytes()));
  }
  submit();
}

// The cache takes it; that it goes on to the disk soon leaves less for the end.
void BackgroundWrites::write_at_once(FileWrite& write) {
  const std::uint64_t length =
      std::accumulate(write.parts.begin(), write.parts.end(), std::uint64_t{0},
                      [](std::uint64_t sum, const iovec& part) { return sum + part.iov_len; });
  file_.write(write.offset, write.parts);
  file_.begin_sync(write.offset, length);
}

void BackgroundWrites::wait() {
  while (under_way_ > 0) collect();
}

bool BackgroundWrites::has_context() {
  if (context_ == nullptr && io_setup(kDepth, &context_) != 0) context_ = nullptr;
  return context_ != nullptr;
}

// As many as may be under way.
void BackgroundWrites::submit() {
  do {
    submit_some();
  } while (under_way_ == 0 && submitted_ < commands_.size());
}

void BackgroundWrites::submit_some() {
  std::array<iocb*, kDepth> next;
  const std::size_t count = std::min(commands_.size() - submitted_, next.size() - under_way_);
  for (std::size_t i = 0; i < count; ++i) next[i] = &commands_[submitted_ + i];
  if (count == 0) return;
  const int accepted = io_submit(context_, static_cast<long>(count), next.data());
  if (accepted > 0) {
    submitted_ += static_cast<std::size_t>(accepted);
    under_way_ += static_cast<std::size_t>(accepted);
  } else if (accepted != -EINTR) {
    finish(writes_[submitted_++], 0);
  }
}

void BackgroundWrites::collect() {
  std::array<io_event, kDepth> events;
  const int count = io_getevents(context_, 1, static_cast<long>(events.size()), events.data(), nullptr);
  if (count == -EINTR) return;
  if (count < 0) {
    throw system_error(fmt::format("{}: cannot learn what became of a write", file_.path()), -count);
  }
  under_way_ -= static_cast<std::size_t>(count);
  for (const io_event& event : std::span(events).first(static_cast<std::size_t>(count))) {
    const auto result = static_cast<std::int64_t>(event.res);
    finish(writes_[static_cast<std::size_t>(event.obj - commands_.data())],
           static_cast<std::uint64_t>(std::max<std::int64_t>(0, result)));
  }
  submit();
}

// What was not written, for whatever reason, is written at once: that tells the reason, if there is one.
void BackgroundWrites::finish(FileWrite& write, std::uint64_t written) {
  const HostOffset offset = write.offset + written;
  std::span<iovec> rest = write.parts;
  while (!rest.empty() && written >= rest.front().iov_len) {
    written -= rest.front().iov_len;
    rest = rest.subspan(1);
  }
  if (rest.empty()) return;
  rest.front().iov_base = static_cast<std::byte*>(rest.front().iov_base) + written;
  rest.front().iov_len -= written;
  file_.write(offset, rest);
}

}  // namespace qchain
