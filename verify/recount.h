#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "qcow2/image.h"
#include "verify/finding.h"
#include "verify/reference_count.h"
#include "verify/reference_walk.h"

namespace qchain {

/// Compares the refcounts of an image with the references counted.
class Recount {
 public:
  /// Reads the refcount table and checks its entries. Image and findings have to outlive this. Throws Error
  /// (Io).
  Recount(const Image& image, FindingList& findings);

  /// Calls `sink` with the reference to each refcount block.
  void refer(const ReferenceSink& sink) const;

  /// Compares the refcounts of all clusters in the window of `counted` with the counts. Over all windows,
  /// every refcount is checked once.
  void compare(const ReferenceCount& counted);

  /// Data clusters that compressed streams use too, with the right refcount and COPIED clear, and their
  /// reference counts. The length of a stream is rounded up to sectors, so it may end before the cluster. At
  /// most kMaxShared of them; the rest are findings.
  const std::map<std::uint64_t, std::uint32_t>& shared_with_streams() const noexcept { return shared_; }
  static constexpr std::size_t kMaxShared = std::size_t{1} << 16;

  /// Referenced host clusters in the windows so far.
  std::uint64_t used_clusters() const noexcept { return used_clusters_; }

 private:
  std::uint64_t read_table();
  void check_table_entry(std::uint64_t index, std::uint64_t raw);
  void set_aside_duplicates();
  HostOffset entry_at(std::uint64_t index) const;
  bool has_refcounts(std::uint64_t index) const;

  void compare_block(std::uint64_t index, std::uint64_t begin, std::uint64_t end,
                     const ReferenceCount& counted);
  void compare_slice(std::uint64_t first, std::uint64_t count, std::span<const std::byte> refcounts,
                     HostOffset refcounts_at, const ReferenceCount& counted);
  void compare_uncovered(const ReferenceCount& counted);
  void compare(std::uint64_t cluster, std::uint64_t refcount, ClusterUse use, HostOffset at);
  void find(Flaw flaw, Severity severity, std::uint64_t cluster, HostOffset at, std::string what);

  const Image& image_;
  FindingList& findings_;
  const unsigned order_;
  const std::uint64_t per_block_;
  const std::uint64_t file_clusters_;  // the last one may be partial
  const bool dirty_;
  std::vector<std::uint64_t> blocks_;  // offset by index; 0: none; or kUnusable
  std::vector<std::byte> buffer_;
  std::uint64_t used_clusters_ = 0;
  std::map<std::uint64_t, std::uint32_t> shared_;
};

}  // namespace qchain
