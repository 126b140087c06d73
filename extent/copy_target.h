// Where a disk is copied to: a file, a block device, a pipe, or an NBD export.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>

#include "extent/background_writes.h"
#include "extent/file.h"
#include "extent/range.h"

namespace qchain {

/// A part of the target to write: bytes, or zeros.
struct WriteRequest {
  GuestRange range;
  std::span<const std::byte> bytes;  ///< range.length() of them; empty: zeros.
};

/// Writes of one thread to a target.
class TargetWriter {
 public:
  virtual ~TargetWriter() = default;
  /// Calls wait(), then starts to write a batch; its requests do not overlap. Threads may do this at the same
  /// time, each with a writer of its own, for ranges that are not in one block of 64 KiB. The buffers must
  /// stay valid until the next wait(). Throws Error (Io), naming what could not be written.
  virtual void start(std::span<const WriteRequest> batch) = 0;
  /// Waits until all that was started is written. Throws Error (Io).
  virtual void wait() = 0;
};

class CopyTarget {
 public:
  virtual ~CopyTarget() = default;

  /// A writer for one thread; the target has to outlive it. Thread-safe.
  virtual std::unique_ptr<TargetWriter> open_writer() = 0;
  /// Makes durable what was written. Throws Error (Io).
  virtual void sync() = 0;
  /// Whether anything was written, or may have been.
  virtual bool is_touched() const { return true; }
  /// Whether it takes bytes only in the order of the disk, from one thread at a time.
  virtual bool is_stream() const { return false; }
};

/// A writer that is done with each batch when start() returns: `write` writes it.
std::unique_ptr<TargetWriter> synchronous_writer(
    std::function<void(std::span<const WriteRequest> batch)> write);

/// What a file holds before anything is copied to it.
enum class TargetContent {
  Zeros,    ///< A new, empty file: zeros are left out, and stay holes.
  Unknown,  ///< A device: zeros are written too, so that no old content shows.
  Stream,   ///< A pipe: every byte is written, in order.
};

class FileTarget : public CopyTarget {
 public:
  /// The file has to outlive it. `space`: whether the space of zeros is released, where they are written.
  FileTarget(const File& file, TargetContent content, ZeroSpace space = ZeroSpace::Release)
      : file_(file), content_(content), space_(space), queue_(file) {}

  std::unique_ptr<TargetWriter> open_writer() override;
  void sync() override { file_.sync(); }
  bool is_touched() const override { return touched_; }
  bool is_stream() const override { return content_ == TargetContent::Stream; }

 private:
  friend class FileWriter;
  void append(std::span<const WriteRequest> batch);
  void write_zeros(const GuestRange& range) const;

  const File& file_;
  TargetContent content_;
  ZeroSpace space_;
  std::atomic<bool> touched_ = false;
  WriteQueue queue_;
};

}  // namespace qchain
