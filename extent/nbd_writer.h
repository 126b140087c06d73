#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "extent/copy_target.h"
#include "extent/nbd_connection.h"

namespace qchain {

/// An NBD export as the target of a copy. Each writing thread has a connection of its own if the server
/// advertises multi-conn (a flush on one connection covers all); else they share one. A lost connection is
/// not re-established: what the server had not yet flushed may be lost with it.
class NbdWriter : public CopyTarget {
 public:
  /// Throws Error: Io if the server or the export cannot be reached; Usage if the export is read-only.
  explicit NbdWriter(const NbdTarget& target);

  std::uint64_t size() const noexcept { return size_; }
  /// Writes a batch, under the conditions of TargetWriter::start().
  void write(std::span<const WriteRequest> batch);
  std::unique_ptr<TargetWriter> open_writer() override;
  void sync() override;
  bool is_touched() const override { return touched_; }

 private:
  using Connection = std::unique_ptr<NbdConnection>;
  Connection take();
  Connection connect_further();
  void give_back(Connection connection);

  const NbdTarget target_;
  std::uint64_t size_ = 0;
  std::atomic<bool> touched_ = false;
  std::mutex in_use_;  // protects the members below
  std::condition_variable given_back_;
  std::mutex connecting_;  // one connection at a time, as for readers; see NbdExportState
  std::vector<Connection> idle_;
  std::size_t connections_ = 1;  // open, idle or not
  bool may_connect_ = false;     // whether to try a further connection
};

}  // namespace qchain
