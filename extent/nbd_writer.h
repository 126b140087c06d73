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

/// An NBD export that is copied to. Each thread that writes has a connection of its own where the server says
/// that a flush of one covers all; else they take turns. A lost connection is not made again: what the server
/// had not yet made durable may be lost with it.
class NbdWriter : public CopyTarget {
 public:
  /// Throws Error: Io where the server or the export is not there; Usage where it is read-only.
  explicit NbdWriter(const NbdTarget& target);

  std::uint64_t size() const noexcept { return size_; }
  void write(std::span<const WriteRequest> batch) override;
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
  std::mutex in_use_;  // of what follows
  std::condition_variable given_back_;
  std::mutex connecting_;  // one after another, as readers do; see NbdExportState
  std::vector<Connection> idle_;
  std::size_t connections_ = 1;  // that there are, idle or not
  bool may_connect_ = false;     // once more
};

}  // namespace qchain
