#include <fmt/format.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <optional>

#include "cli/api/active_run.h"
#include "cli/api/nbd_access.h"
#include "cli/api/pull_checks.h"
#include "cli/api/qchain.h"
#include "cli/api/raw_output.h"
#include "extent/raw_copy.h"

namespace qchain {

namespace {

GuestRange range_of(const RawPullRequest& r, std::uint64_t size) {
  if (!r.range) return guest_range(0, size);
  if (r.range->length > size || r.range->offset > size - r.range->length) {
    throw Error(Outcome::Usage, fmt::format("range {}:{} ends past the end of the disk, which has {} bytes",
                                            r.range->offset, r.range->length, size));
  }
  return guest_range(r.range->offset, r.range->length);
}

class RawPull {
 public:
  RawPull(const RawPullRequest& request, const ActiveRun& run)
      : r_(request), run_(run), live_(nbd_target(request.nbd, request.uri), {}), opaque_(live_) {
    check_writable(live_, r_.require_read_only, run_);
    note_about(live_, true, run_);
    range_ = range_of(r_, live_.size());
    options_.workers = worker_count(r_.nbd, run_.workers(), live_, Work::ReadAndWrite);
    options_.progress = run_.progress("pull", range_.length());
  }

  RawPullResult to_file(RawOutput& output) {
    output.warn_if_short_of_space(range_.length(), extents_of(source(), range_));
    const CopyResult copied = copy_raw(source(), range_, output.file(), TargetContent::Zeros, options_);
    output.sync();
    return confirmed(copied);
  }

  RawPullResult to_stream(const File& stream) {
    try {
      return confirmed(copy_raw(source(), range_, stream, TargetContent::Stream, options_));
    } catch (const Error& error) {
      throw error.with(fmt::format("; the data written to {} is not complete", stream.path()));
    }
  }

 private:
  BlockDevice& source() { return r_.no_extents ? static_cast<BlockDevice&>(opaque_) : live_; }

  RawPullResult confirmed(const CopyResult& copied) {
    warn_about_recovery(live_, run_);
    require_point_in_time(live_, r_.owner);
    return {{range_.begin.bytes(), range_.length()},
            copied.data_bytes,
            copied.zero_bytes,
            source_of(live_),
            live_.export_name(),
            point_in_time(r_.owner)};
  }

  const RawPullRequest& r_;
  const ActiveRun& run_;
  NbdExport live_;
  OpaqueDevice opaque_;
  GuestRange range_;
  CopyOptions options_;
};

}  // namespace

RawPullResult pull_raw(const RawPullRequest& r, const Run& how) {
  const ActiveRun run(how);
  if (r.descriptor >= 0) {
    const File stream(fcntl(r.descriptor, F_DUPFD_CLOEXEC, 3),
                      r.descriptor == STDOUT_FILENO ? "standard output" : "the stream");
    if (stream.descriptor() < 0) throw system_error("the stream: cannot write", errno);
    return RawPull(r, run).to_stream(stream);
  }
  if (r.output.empty()) throw Error(Outcome::Usage, "missing output file");
  RawOutput output(r.output, r.replace ? Existing::Replace : Existing::Refuse, run.warner());
  const RawPullResult result = RawPull(r, run).to_file(output);
  output.publish();
  return result;
}

}  // namespace qchain
