// A disk that can be read: an NBD export, a raw file, memory, or a chain of qcow2 images.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "extent/extent.h"

namespace qchain {

/// A read of into.size() bytes at `begin`, inside the disk.
struct ReadRequest {
  GuestOffset begin;
  std::span<std::byte> into;

  GuestRange range() const { return {begin, begin + into.size()}; }
};

/// Reads a disk, for one thread at a time. Several readers of one disk may be used in parallel.
class Reader {
 public:
  virtual ~Reader() = default;
  /// Reads a batch; returns when all of it has been read. Throws Error (Io), naming the range that could not
  /// be read, or Error (Mismatch) if the disk's metadata is corrupt.
  virtual void read(std::span<const ReadRequest> batch) = 0;
};

class BlockDevice {
 public:
  virtual ~BlockDevice() = default;

  /// For messages: a path or a URI.
  virtual std::string name() const = 0;
  /// In bytes.
  virtual std::uint64_t size() const = 0;

  /// The extents from range.begin on, in order and without gaps. They may end before range.end, but are never
  /// empty: callers ask again for the rest. `range` is inside the disk and not empty. Not thread-safe. Throws
  /// Error.
  virtual Extents extents(const GuestRange& range) = 0;

  /// Opens a reader, which must not outlive the device; nullptr if no more are available, but never on the
  /// first call. Thread-safe.
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

/// Reports all of a device as data, so that every byte is read. The device has to outlive it.
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
