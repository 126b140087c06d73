// Validates what a server sends in reply to a request: libnbd checks little of it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "extent/range.h"

namespace qchain {

/// The flags that one meta context gives to a range; for qemu:allocation-depth, the depth.
struct ContextExtent {
  std::uint64_t length = 0;
  std::uint32_t flags = 0;
};

/// The chunks of a structured reply to a read. They have to cover the range, each byte once: libnbd adds
/// lengths up and does not see chunks that overlap.
class ReadReply {
 public:
  enum class Holes {
    AreZeros,    ///< Without DF a server may leave out what reads as zeros.
    AreRefused,  ///< With DF data was requested. A hole comes from the server's block status, which can race
                 ///< with the guest's writes, so it is not treated as zeros.
  };

  ReadReply(const GuestRange& range, Holes holes) : range_(range), holes_(holes) {}

  void add_data(std::uint64_t offset, std::uint64_t length);
  void add_hole(std::uint64_t offset, std::uint64_t length);
  bool is_complete() const;
  /// More about why it is not complete, or nullptr.
  const char* reason() const noexcept { return reason_; }

 private:
  struct Chunk {
    std::uint64_t offset;
    std::uint64_t length;
  };
  static constexpr std::size_t kMaxChunks = 4096;  // that are not adjacent

  GuestRange range_;
  Holes holes_;
  const char* reason_ = nullptr;
  std::vector<Chunk> chunks_;
};

/// The reply to a block status request.
///
/// Memory for it is bounded, whatever the server sends. But libnbd buffers one chunk at a time, of up to
/// 64 MiB, before any code here sees it: that cannot be limited from outside.
class StatusReply {
 public:
  StatusReply(std::vector<std::string> contexts, std::uint64_t limit)
      : contexts_(std::move(contexts)), limit_(limit), extents_(contexts_.size()) {}

  /// `entries`: lengths and flags alternately.
  void add(const char* context, std::span<const std::uint32_t> entries);
  /// What is wrong with it; empty if it is valid.
  std::string reason() const;
  /// For each context, in the order of the constructor.
  std::vector<std::vector<ContextExtent>> take() { return std::move(extents_); }

 private:
  static constexpr std::size_t kMaxExtents = 16384;  // of each context

  std::vector<std::string> contexts_;
  std::uint64_t limit_;
  std::vector<std::vector<ContextExtent>> extents_;
  const char* reason_ = nullptr;
};

}  // namespace qchain
