#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <functional>
#include <thread>

#include "cli/api/flat_layer.h"
#include "cli/api/nbd_access.h"
#include "cli/api/raw_output.h"
#include "cli/api/restore_job.h"
#include "extent/image_lock.h"
#include "extent/cancellation.h"
#include "extent/nbd_export.h"
#include "extent/nbd_writer.h"
#include "extent/uncached_file.h"
#include "verify/device_digest.h"
#include "verify/layer_build.h"

namespace qchain {

namespace {

Existing existing_for(const RestoreRequest& r) { return r.replace ? Existing::Replace : Existing::Refuse; }

unsigned workers_for(const RestoreJob& job, Work work) {
  return worker_count(job.request.nbd, job.run.workers(), work);
}

std::string not_complete(const std::string& destination) {
  return fmt::format("the content of {} is not complete", destination);
}

// What is done with the data before it is written: compare it with the stored digests, or list what is lost.
std::vector<StageFactory> proving_stages(RestoreJob& job) {
  if (job.is_lenient()) return {salvage_stage(job.chain, job.proof.digests.get(), job.losses)};
  if (job.proof.digests) return {guard(job.chain, *job.proof.digests, job.unknown_bytes)};
  return {};
}

void require_recorded(RestoreJob& job, DiskDigest& whole) {
  const ContentDigest found{job.proof.recorded->algorithm, whole.finish()};
  job.recorded_matches = found == job.proof.recorded;
  if (job.recorded_matches || job.is_lenient()) return;
  throw Error(Outcome::Mismatch,
              fmt::format("{}: the digest of the disk is {}, but its header records {}", job.chain.name(),
                          found.text(), job.proof.recorded->text()),
              Remedy::Salvage);
}

void copy(RestoreJob& job, CopyTarget& target, std::uint64_t length) {
  CopyOptions options;
  options.workers = workers_for(job, Work::ReadAndWrite);
  options.progress = job.run.progress("restore", length);
  options.stages = proving_stages(job);
  std::optional<DiskDigest> whole;
  if (job.proof.recorded) {
    whole.emplace(job.proof.recorded->algorithm);
    options.stages.push_back(digest_stage(*whole, job.proof.recorded->algorithm));
  }
  SalvageDevice lenient(job.chain);
  BlockDevice& source = job.is_lenient() ? static_cast<BlockDevice&>(lenient) : job.chain;
  job.copied = copy_raw(source, guest_range(0, length), target, options);
  if (job.is_lenient()) job.unknown_bytes = job.losses.unknown_bytes;
  if (job.proof.digests) job.proof.digests->finish();
  if (whole) require_recorded(job, *whole);
}

void read_again(RestoreJob& job, BlockDevice& target) {
  const bool by_digests = job.proof.digests && job.is_verified() && job.unknown_bytes == 0;
  const std::unique_ptr<ChainDigests> digests = by_digests ? job.points.digests(0) : nullptr;
  job.read_back = read_back(job.chain, target, digests.get(), workers_for(job, Work::Read),
                            job.run.progress("read back", target.size()));
}

class FileRestore : public RestoreTarget {
 public:
  FileRestore(const RestoreRequest& request, const ActiveRun& run)
      : output_(request.destination, existing_for(request), run.warner()) {}

  void write(RestoreJob& job) override {
    const std::uint64_t length = job.chain.top().true_length();
    output_.warn_if_short_of_space(length, extents_of(job.chain, guest_range(0, length)));
    if (job.request.preallocate) output_.file().allocate(length);
    output_.file().resize(length);
    FileTarget target(output_.file(), TargetContent::Zeros);
    copy(job, target, length);
    target.sync();
    if (job.request.read_back) {
      UncachedFile written(output_.current_path(), job.request.destination);
      read_again(job, written);
    }
    if (job.read_back_outcome() != Outcome::Done) return;
    output_.publish();
  }
  bool is_in_place() const override { return false; }

 private:
  RawOutput output_;
};

class LayerRestore : public RestoreTarget {
 public:
  void write(RestoreJob& job) override {
    FlatLayerOptions options;
    options.existing = existing_for(job.request);
    // The layer has a digest of its own, and is compared with what is recorded by it.
    const std::optional<ContentDigest> recorded = std::exchange(job.proof.recorded, std::nullopt);
    options.stages = proving_stages(job);
    if (job.proof.digests) options.algorithm = job.proof.digests->top().algorithm;
    if (recorded) options.algorithm = recorded->algorithm;
    if (!job.is_lenient()) options.expected_digest = job.proof.root ? job.proof.root : recorded;
    options.workers = workers_for(job, Work::ReadAndWrite);
    options.progress = job.run.progress("restore", job.chain.top().true_length());
    options.warn = job.run.warner();
    SalvageDevice lenient(job.chain);
    BlockDevice& source = job.is_lenient() ? static_cast<BlockDevice&>(lenient) : job.chain;
    const FlatLayer flat = write_flat_layer(job.chain, source, job.request.destination, options);
    if (job.is_lenient()) job.unknown_bytes = job.losses.unknown_bytes;
    if (job.proof.digests) job.proof.digests->finish();
    job.recorded_matches = recorded && flat.digest == recorded;
    job.copied = {flat.written.data_bytes, job.chain.top().true_length() - flat.written.data_bytes};
    job.layer_id = flat.id;
  }
  bool is_in_place() const override { return false; }
};

class StreamRestore : public RestoreTarget {
 public:
  explicit StreamRestore(int descriptor)
      : out_(fcntl(descriptor, F_DUPFD_CLOEXEC, 3),
             descriptor == STDOUT_FILENO ? "standard output" : "the stream") {
    if (out_.descriptor() < 0) throw system_error(out_.path() + ": cannot write", errno);
  }

  void write(RestoreJob& job) override {
    FileTarget target(out_, TargetContent::Stream);
    try {
      copy(job, target, job.chain.top().true_length());
    } catch (const Error& error) {
      if (!target.is_touched()) throw;
      throw error.with(fmt::format("; the data written to {} is not complete", out_.path()));
    }
  }

 private:
  File out_;
};

// A device or an export: written in place.
class PlaceRestore : public RestoreTarget {
 protected:
  // How much of it is written: the disk, with the zeros that fill its last sector as far as there is room for
  // them.
  static std::uint64_t written_length(const RestoreJob& job, std::uint64_t size) {
    const std::uint64_t needed = job.chain.top().true_length();
    if (size < needed) {
      throw Error(Outcome::Usage, fmt::format("{}: has {} bytes, but the disk has {}; use a larger one",
                                              job.request.destination, size, needed));
    }
    return std::min(size, job.chain.size());
  }

  static void write_all(RestoreJob& job, CopyTarget& target, std::uint64_t length, std::uint64_t size) {
    copy(job, target, length);
    constexpr std::uint64_t kStep = std::uint64_t{1} << 30;
    if (!job.request.zero_rest) job.rest_bytes = size - length;
    const std::unique_ptr<TargetWriter> writer = target.open_writer();
    for (std::uint64_t at = length; job.request.zero_rest && at < size; at += kStep) {
      throw_if_cancelled();
      const WriteRequest zeros{guest_range(at, std::min(kStep, size - at)), {}};
      writer->start(std::span(&zeros, 1));
      writer->wait();
    }
    target.sync();
  }

  // From the first write on, a failure leaves something behind.
  static void overwrite(const RestoreJob& job, const CopyTarget& target, const std::function<void()>& write) {
    try {
      write();
    } catch (const Error& error) {
      if (!target.is_touched()) throw;
      throw error.with("; " + not_complete(job.request.destination));
    }
  }
};

class DeviceRestore : public PlaceRestore {
 public:
  DeviceRestore(const std::string& path, const Chain& chain)
      : device_([&] {
          // O_EXCL refuses a device that is mounted or otherwise in use by the kernel.
          const int descriptor = open(path.c_str(), O_RDWR | O_EXCL | O_CLOEXEC);
          if (descriptor < 0) throw system_error(fmt::format("{}: cannot open", path), errno);
          return File(descriptor, path);
        }()) {
    if (device_.is_read_only()) {
      throw Error(Outcome::Usage, fmt::format("{}: the device is read-only; nothing was written", path));
    }
    lock_image(device_, Sharing::Write);
    const StorageStack stack(device_);
    for (const Layer& layer : chain.layers()) {
      for (const File* const file : {&layer.file(), &layer.data()}) {
        if (!stack.overlaps(StorageStack(*file))) continue;
        throw Error(Outcome::Usage,
                    fmt::format("{}: is on the same storage as {}, a layer of the chain that is restored",
                                path, file->path()));
      }
    }
    device_.bypass_cache();
  }

  void write(RestoreJob& job) override {
    const std::uint64_t size = device_.size();
    const std::uint64_t length = written_length(job, size);
    FileTarget target(device_, TargetContent::Unknown,
                      job.request.preallocate ? ZeroSpace::Keep : ZeroSpace::Release);
    overwrite(job, target, [&] {
      write_all(job, target, length, size);
      if (!job.request.read_back) return;
      UncachedFile whole(job.request.destination);
      FirstBytes written(whole, length);
      read_again(job, written);
    });
  }

 private:
  File device_;
};

// The server may have but one connection to give, and not have noticed yet that the last one is over.
NbdExport reopen(const NbdTarget& target) {
  constexpr std::chrono::milliseconds kPause{100};
  for (int attempts = 20;; --attempts) {
    try {
      return {target, {}};
    } catch (const Error& error) {
      if (error.outcome() != Outcome::Io || attempts == 0) throw;
    }
    throw_if_cancelled();
    std::this_thread::sleep_for(kPause);
  }
}

class ExportRestore : public PlaceRestore {
 public:
  explicit ExportRestore(const RestoreRequest& r) : name_(nbd_target(r.nbd, r.destination)) {
    name_.keep_space = r.preallocate;
    target_.emplace(name_);
  }

  void write(RestoreJob& job) override {
    const std::uint64_t size = target_->size();
    const std::uint64_t length = written_length(job, size);
    overwrite(job, *target_, [&] { write_all(job, *target_, length, size); });
    target_.reset();
    if (!job.request.read_back) return;
    try {
      NbdExport live = reopen(name_);
      OpaqueDevice whole(live);  // reads all data: the server's block status proves nothing
      FirstBytes written(whole, length);
      read_again(job, written);
    } catch (const Error& error) {
      throw error.with("; it was not read back, so possibly " + not_complete(job.request.destination));
    }
  }

 private:
  NbdTarget name_;
  std::optional<NbdWriter> target_;
};

// Neither the chain nor what belongs to it is written over.
void protect(const RestoreRequest& r, const Chain& chain) {
  for (const std::string& path : {r.destination, manifest_path(r.destination)}) {
    const Destination found = resolve_destination(path);
    if (found.kind == DestinationKind::Nothing || !belongs_to(chain, found.identity)) continue;
    throw Error(Outcome::Usage,
                fmt::format("{}: is a layer of the chain that is restored, or belongs to one", path));
  }
}

}  // namespace

std::unique_ptr<RestoreTarget> open_restore_target(const RestoreRequest& r, const Chain& chain,
                                                   const ActiveRun& run) {
  const bool is_stream = r.descriptor >= 0;
  const bool is_export = !is_stream && is_nbd_uri(r.destination);
  if (!is_stream && r.destination.empty()) throw Error(Outcome::Usage, "missing destination");
  const Destination found = is_export || is_stream ? Destination() : resolve_destination(r.destination);
  const bool is_device = found.kind == DestinationKind::BlockDevice;
  const bool in_place = is_export || is_device;
  const auto only_for = [&](bool given, bool possible, const char* what, const char* targets) {
    if (given && !possible) {
      throw Error(Outcome::Usage, fmt::format("{}: {} is only for {}",
                                              is_stream ? "a stream" : r.destination.c_str(), what, targets));
    }
  };
  only_for(r.as_layer, !in_place && !is_stream, "a qcow2 layer", "files");
  only_for(r.zero_rest, in_place, "zeroing the rest", "block devices and NBD exports");
  only_for(r.preallocate, !is_stream && !r.as_layer, "preallocation",
           "raw files, block devices and NBD exports");
  only_for(r.read_back, !is_stream && !r.as_layer, "reading back", "raw targets that can be read again");
  if (is_stream) return std::make_unique<StreamRestore>(r.descriptor);
  if (is_export) return std::make_unique<ExportRestore>(r);
  protect(r, chain);
  if (is_device) return std::make_unique<DeviceRestore>(r.destination, chain);
  if (r.as_layer) return std::make_unique<LayerRestore>();
  return std::make_unique<FileRestore>(r, run);
}

}  // namespace qchain
