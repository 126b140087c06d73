#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "extent/block_device.h"
#include "extent/nbd_export_state.h"
#include "extent/read_samples.h"

namespace qchain {

/// Reads a live export. Retries a request that fails, and narrows it down to the bytes that cannot be read;
/// reconnects after a loss, and checks that it is still the same export.
class NbdReader : public Reader {
 public:
  /// Without a connection of its own, the reader uses the control connection, which never reconnects.
  NbdReader(NbdExportState& state, NbdExportState::Connection own);

  void read(std::span<const ReadRequest> batch) override;

 private:
  class Narrowing;
  using Samples = std::vector<ReadSamples::Sample>;

  NbdConnection& connection() { return own_ ? *own_ : state_.control; }
  std::vector<FailedRead> read_over_losses(std::vector<ReadRequest> todo);
  std::vector<FailedRead> try_to_read(const std::vector<ReadRequest>& todo);
  std::uint64_t narrow_down(const std::vector<FailedRead>& failed);
  void reconnect(unsigned& losses, const GuestRange& lost);
  bool is_same_export();
  void compare_with_control(const Samples& samples);
  void compare(const Samples& samples, NbdConnection& connection, const char* which) const;

  NbdExportState& state_;
  NbdExportState::Connection own_;
  const std::uint64_t unit_;  // the smallest range that is reported as unreadable
  ReadSamples samples_;
};

}  // namespace qchain
