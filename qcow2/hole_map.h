#pragma once

#include <cstdint>

#include "extent/file.h"

namespace qchain {

/// Where a file has holes, which read as zeros: asked of the file system when it is needed, and only of a
/// file that takes less space than it is long. An image with preallocated metadata maps every cluster, and
/// most of them are holes. One thread at a time.
class HoleMap {
 public:
  /// The file has to outlive it.
  explicit HoleMap(const File& file);

  /// Whether it is worth asking.
  bool is_sparse() const noexcept { return sparse_; }

  struct Run {
    std::uint64_t length = 0;  ///< Bytes; not 0.
    bool is_hole = false;
  };
  /// What the file has at `begin`, for a beginning of `length` bytes, which are not 0.
  Run at(HostOffset begin, std::uint64_t length);

 private:
  void look(std::uint64_t begin);

  const File& file_;
  bool sparse_;
  // What is known: [begin_, end_) is alike.
  std::uint64_t begin_ = 0;
  std::uint64_t end_ = 0;
  bool is_hole_ = false;
};

}  // namespace qchain
