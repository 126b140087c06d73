#include "extent/copy_target.h"

#include <algorithm>
#include <array>
#include <cstdint>

namespace qchain {

namespace {

// Of a target that does everything at once.
class PlainWriter : public TargetWriter {
 public:
  explicit PlainWriter(CopyTarget& target) : target_(target) {}

  void start(std::span<const WriteRequest> batch) override { target_.write(batch); }
  void wait() override {}

 private:
  CopyTarget& target_;
};

}  // namespace

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

std::unique_ptr<TargetWriter> CopyTarget::open_writer() { return std::make_unique<PlainWriter>(*this); }

std::unique_ptr<TargetWriter> FileTarget::open_writer() {
  if (is_stream()) return CopyTarget::open_writer();
  return std::make_unique<FileWriter>(*this);
}

void FileTarget::write(std::span<const WriteRequest> batch) {
  touched_ = true;
  for (const WriteRequest& request : batch) {
    if (request.bytes.empty()) {
      write_zeros(request.range);
    } else if (is_stream()) {
      file_.append(request.bytes);
    } else {
      file_.write(HostOffset(request.range.begin.bytes()), request.bytes);
    }
  }
}

void FileTarget::write_zeros(const GuestRange& range) {
  static constexpr std::array<std::byte, std::size_t{64} << 10> kZeros{};
  switch (content_) {
    case TargetContent::Zeros:
      return;
    case TargetContent::Unknown:
      return file_.write_zeros(HostOffset(range.begin.bytes()), range.length(), space_);
    case TargetContent::Stream:
      for (std::uint64_t rest = range.length(); rest > 0;) {
        const std::size_t step = std::min<std::uint64_t>(rest, kZeros.size());
        file_.append(std::span(kZeros).first(step));
        rest -= step;
      }
  }
}

}  // namespace qchain
