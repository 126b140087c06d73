// Where a disk is copied to: a file, a block device, a pipe, or an NBD export.
#pragma once

#include <atomic>
#include <cstddef>
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
  /// Begins to write a batch, as CopyTarget::write() would, after a wait() for the one before. Its bytes stay
  /// where they are until the next wait(). Throws Error (Io).
  virtual void start(std::span<const WriteRequest> batch) = 0;
  /// Until all that was started is written. Throws Error (Io).
  virtual void wait() = 0;
};

class CopyTarget {
 public:
  virtual ~CopyTarget() = default;

  /// Writes a batch; its requests do not overlap. Threads may call this at the same time, for ranges that are
  /// not in one block of 64 KiB. Throws Error (Io), naming what could not be written.
  virtual void write(std::span<const WriteRequest> batch) = 0;
  /// For a thread that has other things to do while its bytes are written.
  virtual std::unique_ptr<TargetWriter> open_writer();
  /// Makes durable what was written. Throws Error (Io).
  virtual void sync() = 0;
  /// Whether anything was written, or may have been.
  virtual bool is_touched() const { return true; }
  /// Whether it takes bytes only in the order of the disk, from one thread at a time.
  virtual bool is_stream() const { return false; }
};

/// What a file holds before anything is copied to it.
enum class TargetContent {
  Zeros,    ///< A new, empty file: zeros are left out, and stay holes.
  Unknown,  ///< A device: zeros are written too, so that no old content shows.
  Stream,   ///< A pipe: every byte is written, in order.
};

class FileTarget : public CopyTarget {
 public:
  /// The file has to outlive it. `space`: what becomes of that of zeros, where they are written.
  FileTarget(const File& file, TargetContent content, ZeroSpace space = ZeroSpace::Release)
      : file_(file), content_(content), space_(space), queue_(file) {}

  void write(std::span<const WriteRequest> batch) override;
  std::unique_ptr<TargetWriter> open_writer() override;
  void sync() override { file_.sync(); }
  bool is_touched() const override { return touched_; }
  bool is_stream() const override { return content_ == TargetContent::Stream; }

 private:
  friend class FileWriter;
  void write_zeros(const GuestRange& range);

  const File& file_;
  TargetContent content_;
  ZeroSpace space_;
  std::atomic<bool> touched_ = false;
  WriteQueue queue_;
};

}  // namespace qchain
