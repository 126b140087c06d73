#include "extent/copy_target.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
namespace qchain {

namespace {

class SynchronousWriter : public TargetWriter {
 public:
  explicit SynchronousWriter(std::function<void(std::span<const WriteRequest>)> write)
      : write_(std::move(write)) {}

  void start(std::span<const WriteRequest> batch) override { write_(batch); }
  void wait() override {}

 private:
  std::function<void(std::span<const WriteRequest>)> write_;
};

}  // namespace

std::unique_ptr<TargetWriter> synchronous_writer(
    std::function<void(std::span<const WriteRequest> batch)> write) {
  return std::make_unique<SynchronousWriter>(std::move(write));
}

class FileWriter : public TargetWriter {
 public:
  explicit FileWriter(FileTarget& target) : target_(target), writes_(target.queue_) {}

  void start(std::span<const WriteRequest> batch) override {
    WriteList list;
    target_.touched_ = true;
    for (const WriteRequest& request : batch) {
      if (request.bytes.empty()) {
        target_.write_zeros(request.range);
      } else {
        list.add(HostOffset(request.range.begin.bytes()), request.bytes);
      }
    }
    writes_.start(list.take());
  }
  void wait() override { writes_.wait(); }

 private:
  FileTarget& target_;
  BackgroundWrites writes_;
};

std::unique_ptr<TargetWriter> FileTarget::open_writer() {
  if (is_stream()) {
    return synchronous_writer([this](std::span<const WriteRequest> batch) { append(batch); });
  }
  return std::make_unique<FileWriter>(*this);
}

// To a stream.
void FileTarget::append(std::span<const WriteRequest> batch) {
  static constexpr std::array<std::byte, std::size_t{64} << 10> kZeros{};
  touched_ = true;
  for (const WriteRequest& request : batch) {
    if (!request.bytes.empty()) {
      file_.append(request.bytes);
      continue;
    }
    for (std::uint64_t rest = request.range.length(); rest > 0;) {
      const std::size_t step = std::min<std::uint64_t>(rest, kZeros.size());
      file_.append(std::span(kZeros).first(step));
      rest -= step;
    }
  }
}

// To a file or device; a new file has zeros already.
void FileTarget::write_zeros(const GuestRange& range) const {
  if (content_ == TargetContent::Zeros) return;
  file_.write_zeros(HostOffset(range.begin.bytes()), range.length(), space_);
}

}  // namespace qchain
