#pragma once

#include <cstdint>

#include "extent/file.h"

namespace qchain {

/// Where a file has holes, which read as zeros. Queries the file system on demand, and only for a file that
/// occupies less space than its length. An image with preallocated metadata maps every cluster, and most of
/// them are holes. For one thread at a time.
class HoleMap {
 public:
  /// The file has to outlive it.
  explicit HoleMap(const File& file);

  /// Whether the file can have holes.
  bool is_sparse() const noexcept { return sparse_; }

  struct Run {
    std::uint64_t length = 0;  ///< Bytes; not 0.
    bool is_hole = false;
  };
  /// Whether there is a hole at `begin`, and for how many bytes: 1 to `length` (> 0).
  Run at(HostOffset begin, std::uint64_t length);

 private:
  void query(std::uint64_t begin);

  const File& file_;
  bool sparse_;
  // The last answer: [begin_, end_) is all hole or all data.
  std::uint64_t begin_ = 0;
  std::uint64_t end_ = 0;
  bool is_hole_ = false;
};

}  // namespace qchain
