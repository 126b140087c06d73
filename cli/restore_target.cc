#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <functional>
#include <thread>

#include "cli/flat_layer.h"
#include "cli/raw_output.h"
#include "cli/restore_job.h"
#include "extent/image_lock.h"
#include "extent/interrupt.h"
#include "extent/nbd_export.h"
#include "extent/nbd_writer.h"
#include "extent/uncached_file.h"
#include "verify/device_digest.h"
#include "verify/layer_build.h"

namespace qchain {

namespace {

Existing existing_for(const RestoreOptions& o) { return o.force ? Existing::Replace : Existing::Refuse; }

Warn warn_by(Console& console) {
  return [&console](const std::string& message) { console.warn(message); };
}

std::string not_complete(const std::string& destination) {
  return fmt::format("the content of {} is not complete", destination);
}

Algorithm algorithm_of(const std::string& digest) {
  return algorithm_named(digest.substr(0, digest.find(':')));
}

// Who watches the copy: the stored digests, the list of what is lost, the digest of the whole.
WatcherFactory watcher_for(RestoreJob& job, std::optional<DiskDigest>& whole) {
  WatcherFactory watcher;
  if (job.is_lenient()) {
    watcher = salvage_watcher(job.chain, job.proof.digests.get(), job.losses);
  } else if (job.proof.digests) {
    watcher = guard(job.chain, *job.proof.digests, job.unknown_bytes);
  }
  if (job.proof.recorded.empty()) return watcher;
  const Algorithm algorithm = algorithm_of(job.proof.recorded);
  whole.emplace(algorithm);
  WatcherFactory hasher = digest_watcher(*whole, algorithm);
  return watcher ? both(std::move(watcher), std::move(hasher)) : std::move(hasher);
}

void require_recorded(RestoreJob& job, DiskDigest& whole) {
  const std::string found = named(algorithm_of(job.proof.recorded), whole.finish());
  job.recorded_fits = found == job.proof.recorded;
  if (job.recorded_fits || job.is_lenient()) return;
  throw Error(
      Outcome::Mismatch,
      fmt::format("{}: the digest of the disk is {}, and its header records {}; qchain verify names what is "
                  "damaged, --salvage restores the rest",
                  job.chain.name(), found, job.proof.recorded));
}

void copy(RestoreJob& job, CopyTarget& target, std::uint64_t length) {
  Progress progress(job.console.progress_style(), "restore", length);
  std::optional<DiskDigest> whole;
  CopyOptions options;
  options.workers = job.o.nbd.workers(Work::ReadAndWrite);
  options.progress = progress.updater();
  options.make_watcher = watcher_for(job, whole);
  options.salvage = job.is_lenient();
  SalvageDevice lenient(job.chain);
  BlockDevice& source = job.is_lenient() ? static_cast<BlockDevice&>(lenient) : job.chain;
  job.copied = copy_raw(source, guest_range(0, length), target, options);
  if (job.is_lenient()) job.unknown_bytes = job.losses.unknown_bytes;
  if (job.proof.digests) job.proof.digests->finish();
  if (whole) require_recorded(job, *whole);
}

void read_again(RestoreJob& job, BlockDevice& target) {
  Progress progress(job.console.progress_style(), "read back", target.size());
  const bool by_digests = job.proof.digests && job.is_verified() && job.unknown_bytes == 0;
  const std::unique_ptr<ChainDigests> digests = by_digests ? digests_from(job.chain, 0) : nullptr;
  job.read_back =
      read_back(job.chain, target, digests.get(), job.o.nbd.workers(Work::Read), progress.updater());
}

class FileRestore : public RestoreTarget {
 public:
  FileRestore(const RestoreOptions& o, Console& console)
      : output_(o.destination, existing_for(o), warn_by(console)) {}

  void run(RestoreJob& job) override {
    const std::uint64_t length = job.chain.top().true_length();
    output_.warn_if_short_of_space(length, extents_of(job.chain, guest_range(0, length)));
    if (job.o.preallocate) output_.file().allocate(length);
    output_.file().resize(length);
    FileTarget target(output_.file(), TargetContent::Zeros);
    copy(job, target, length);
    target.sync();
    if (job.o.read_back) {
      UncachedFile written(output_.current_path(), job.o.destination);
      read_again(job, written);
    }
    if (job.read_back_outcome() != Outcome::Done) return;
    output_.publish();
  }
  std::string after_mismatch(const RestoreJob& job) const override {
    return fmt::format("{}: was not made", job.o.destination);
  }

 private:
  RawOutput output_;
};

class LayerRestore : public RestoreTarget {
 public:
  void run(RestoreJob& job) override {
    Progress progress(job.console.progress_style(), "restore", job.chain.top().true_length());
    std::optional<DiskDigest> unused;
    FlatLayerOptions options;
    options.existing = existing_for(job.o);
    // The layer has a digest of its own, and is compared with what is recorded by it.
    const std::string recorded = std::exchange(job.proof.recorded, {});
    options.watcher = watcher_for(job, unused);
    if (job.proof.digests) options.algorithm = job.proof.digests->top().algorithm;
    if (!recorded.empty()) options.algorithm = algorithm_of(recorded);
    options.salvage = job.is_lenient();
    if (!job.is_lenient()) options.expected_root = job.proof.root.empty() ? recorded : job.proof.root;
    options.workers = job.o.nbd.workers(Work::ReadAndWrite);
    options.progress = progress.updater();
    options.warn = warn_by(job.console);
    SalvageDevice lenient(job.chain);
    BlockDevice& source = job.is_lenient() ? static_cast<BlockDevice&>(lenient) : job.chain;
    const FlatLayer flat = write_flat_layer(job.chain, source, job.o.destination, options);
    if (job.is_lenient()) job.unknown_bytes = job.losses.unknown_bytes;
    if (job.proof.digests) job.proof.digests->finish();
    job.recorded_fits = !recorded.empty() && flat.root == recorded;
    job.copied = {flat.written.data_bytes, job.chain.top().true_length() - flat.written.data_bytes};
    job.layer_id = flat.id;
  }
};

class PipeRestore : public RestoreTarget {
 public:
  explicit PipeRestore(Console& console) : out_(dup(STDOUT_FILENO), "standard output") {
    if (out_.descriptor() < 0) throw system_error("standard output: cannot be written to", errno);
    console.use_standard_error();
  }

  void run(RestoreJob& job) override {
    FileTarget target(out_, TargetContent::Stream);
    try {
      copy(job, target, job.chain.top().true_length());
    } catch (const Error& error) {
      if (!target.is_touched()) throw;
      throw Error(error.outcome(),
                  fmt::format("{}; what went to standard output is not complete", error.what()));
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
      throw Error(Outcome::Usage, fmt::format("{}: has {} bytes and the disk {}; use a larger one",
                                              job.o.destination, size, needed));
    }
    return std::min(size, job.chain.size());
  }

  static void write_all(RestoreJob& job, CopyTarget& target, std::uint64_t length, std::uint64_t size) {
    copy(job, target, length);
    constexpr std::uint64_t kStep = std::uint64_t{1} << 30;
    if (!job.o.zero_rest) job.rest_bytes = size - length;
    for (std::uint64_t at = length; job.o.zero_rest && at < size; at += kStep) {
      throw_if_interrupted();
      const WriteRequest zeros{guest_range(at, std::min(kStep, size - at)), {}};
      target.write(std::span(&zeros, 1));
    }
    target.sync();
  }

  // From the first write on, a failure leaves something behind.
  static void overwrite(const RestoreJob& job, const CopyTarget& target, const std::function<void()>& write) {
    try {
      write();
    } catch (const Error& error) {
      if (!target.is_touched()) throw;
      throw Error(error.outcome(), fmt::format("{}; {}", error.what(), not_complete(job.o.destination)));
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
        if (!stack.meets(StorageStack(*file))) continue;
        throw Error(Outcome::Usage,
                    fmt::format("{}: stands on the same storage as {}, a layer of the chain that is restored",
                                path, file->path()));
      }
    }
    device_.bypass_cache();
  }

  void run(RestoreJob& job) override {
    const std::uint64_t size = device_.size();
    const std::uint64_t length = written_length(job, size);
    FileTarget target(device_, TargetContent::Unknown,
                      job.o.preallocate ? ZeroSpace::Keep : ZeroSpace::Release);
    overwrite(job, target, [&] {
      write_all(job, target, length, size);
      if (!job.o.read_back) return;
      UncachedFile whole(job.o.destination);
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
    throw_if_interrupted();
    std::this_thread::sleep_for(kPause);
  }
}

class ExportRestore : public PlaceRestore {
 public:
  explicit ExportRestore(const RestoreOptions& o) : name_(o.nbd.target(o.destination)) {
    name_.keep_space = o.preallocate;
    target_.emplace(name_);
  }

  void run(RestoreJob& job) override {
    const std::uint64_t size = target_->size();
    const std::uint64_t length = written_length(job, size);
    overwrite(job, *target_, [&] { write_all(job, *target_, length, size); });
    target_.reset();
    if (!job.o.read_back) return;
    try {
      NbdExport live = reopen(name_);
      OpaqueDevice whole(live);  // what the server says of zeros is no proof
      FirstBytes written(whole, length);
      read_again(job, written);
    } catch (const Error& error) {
      throw Error(error.outcome(), fmt::format("{}; it was not read back, so that perhaps {}", error.what(),
                                               not_complete(job.o.destination)));
    }
  }

 private:
  NbdTarget name_;
  std::optional<NbdWriter> target_;
};

// Neither the chain nor what belongs to it is written over.
void protect(const RestoreOptions& o, const Chain& chain) {
  for (const std::string& path : {o.destination, manifest_path(o.destination)}) {
    const Destination found = look_at(path);
    if (found.kind == DestinationKind::Nothing || !belongs_to(chain, found.identity)) continue;
    throw Error(Outcome::Usage,
                fmt::format("{}: is a layer of the chain that is restored, or belongs to one", path));
  }
}

}  // namespace

std::string RestoreTarget::after_mismatch(const RestoreJob& job) const {
  return not_complete(job.o.destination);
}

std::unique_ptr<RestoreTarget> open_restore_target(const RestoreOptions& o, const Chain& chain,
                                                   Console& console) {
  const bool as_layer = o.format == ImageFormat::Qcow2;
  const bool is_export = is_nbd_uri(o.destination);
  const bool is_pipe = o.destination == "-";
  const Destination found = is_export || is_pipe ? Destination() : look_at(o.destination);
  const bool is_device = found.kind == DestinationKind::BlockDevice;
  const bool in_place = is_export || is_device;
  const auto only_for = [&](bool given, bool possible, const char* option, const char* what) {
    if (given && !possible)
      throw Error(Outcome::Usage, fmt::format("{}: {} is for {}", o.destination, option, what));
  };
  only_for(as_layer, !in_place && !is_pipe, "--format qcow2", "files");
  only_for(o.zero_rest, in_place, "--zero-rest", "block devices and NBD exports");
  only_for(o.preallocate, !is_pipe && !as_layer, "--preallocate", "raw files, block devices and NBD exports");
  only_for(o.read_back, !is_pipe && !as_layer, "--read-back", "raw targets that can be read again");
  only_for(o.common.json, !is_pipe, "--json",
           "other destinations: standard output cannot take the disk and a document");
  if (is_pipe) return std::make_unique<PipeRestore>(console);
  if (is_export) return std::make_unique<ExportRestore>(o);
  protect(o, chain);
  if (is_device) return std::make_unique<DeviceRestore>(o.destination, chain);
  if (as_layer) return std::make_unique<LayerRestore>();
  return std::make_unique<FileRestore>(o, console);
}

}  // namespace qchain
