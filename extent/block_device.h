// A disk that can be read: an NBD export, a raw file, memory, or a chain of qcow2 images.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "extent/extent.h"

namespace qchain {

/// Bytes to fetch: into.size() of them, from `begin` on, inside the disk.
struct ReadRequest {
  GuestOffset begin;
  std::span<std::byte> into;

  GuestRange range() const { return {begin, begin + into.size()}; }
};

/// One thread's way to read a disk. Two readers of one disk may be used at the same time.
class Reader {
 public:
  virtual ~Reader() = default;
  /// Fetches a batch; returns when every byte of it is there. Throws Error (Io), naming the range that
  /// could not be read, or Error (Mismatch) where the disk's metadata is corrupt.
  virtual void read(std::span<const ReadRequest> batch) = 0;
};

class BlockDevice {
 public:
  virtual ~BlockDevice() = default;

  /// For messages: a path or a URI.
  virtual std::string name() const = 0;
  /// In bytes.
  virtual std::uint64_t size() const = 0;

  /// What the disk is from range.begin on: extents in order and without gaps, covering a part of
  /// `range` that is as long as is cheap, and never empty. `range` is inside the disk and not empty.
  /// Not for two threads at a time. Throws Error.
  virtual Extents extents(const GuestRange& range) = 0;

  /// A further reader, which must not outlive the device; nullptr where no more can be had, which is
  /// never the answer to the first call. Threads may call this at the same time.
  virtual std::unique_ptr<Reader> open_reader() = 0;
};

/// The first `size` bytes of a device, which has to outlive it.
class FirstBytes : public BlockDevice {
 public:
  FirstBytes(BlockDevice& device, std::uint64_t size) : device_(device), size_(size) {}
  std::string name() const override { return device_.name(); }
  std::uint64_t size() const override { return size_; }
  Extents extents(const GuestRange& range) override { return device_.extents(range); }
  std::unique_ptr<Reader> open_reader() override { return device_.open_reader(); }

 private:
  BlockDevice& device_;
  std::uint64_t size_;
};

/// A device that is not asked what it holds, so that every byte is read. The device has to outlive it.
class OpaqueDevice : public BlockDevice {
 public:
  explicit OpaqueDevice(BlockDevice& device) : device_(device) {}
  std::string name() const override { return device_.name(); }
  std::uint64_t size() const override { return device_.size(); }
  Extents extents(const GuestRange& range) override { return {{range, Kind::Data}}; }
  std::unique_ptr<Reader> open_reader() override { return device_.open_reader(); }

 private:
  BlockDevice& device_;
};

/// The extents of `range` of a device, as a stream. The device has to outlive it.
ExtentSource extents_of(BlockDevice& device, GuestRange range);
/// The extents of a whole device.
ExtentSource extents_of(BlockDevice& device);

}  // namespace qchain
