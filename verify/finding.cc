#include "verify/finding.h"

#include <fmt/format.h>

#include <utility>

namespace qchain {

namespace {

struct FlawText {
  const char* name;
  const char* remedy;
};

// Each of these is carried out in tests/e2e/remedies_test.py.
constexpr const char* kAnotherCopy =
    "take this layer from another copy of the file; without one, qemu-img convert --salvage -O qcow2 IMAGE "
    "COPY "
    "writes what can still be read, with zeros for the rest";
constexpr const char* kRepair = "do not write to the image before qemu-img check -r all has repaired it";
constexpr const char* kRepairLeaks = "qemu-img check -r leaks gives the space back";

constexpr std::array<FlawText, kFlaws> kTexts{{
    {"marked-corrupt", "qemu-img check -r all clears the mark once nothing is wrong any more"},
    {"bad-extension",
     "take this layer from another copy of the file; where it is about bitmaps alone, qchain restore IMAGE "
     "COPY "
     "--format qcow2 writes an image without them, which QEMU can open: take a full backup next"},
    {"reserved-bits",
     "take this layer from another copy of the file; without one, qemu-img convert -O qcow2 IMAGE COPY "
     "writes a "
     "sound image: QEMU ignores these bits"},
    {"misaligned", kAnotherCopy},
    {"past-end", kAnotherCopy},
    {"truncated",
     "take this layer from another copy of the file; without one, qemu-img convert --salvage -O qcow2 IMAGE "
     "COPY "
     "writes what can still be read, with zeros for the rest; where nothing but refcounts is lost, qemu-img "
     "check "
     "-r all counts them anew"},
    {"bad-entry", kAnotherCopy},
    {"bad-stream", kAnotherCopy},
    {"overlap",
     "nobody can tell whose bytes they are: take this layer from another copy of the file; without one, "
     "qchain "
     "restore IMAGE COPY --format qcow2 writes an image of what can be read"},
    {"refcount-low", kRepair},
    {"refcount-high", kRepairLeaks},
    {"refcount-stale", "QEMU counts anew when it opens the image for writing, as does qemu-img check -r all"},
    {"refcount-past-end",
     "lengthen the file over these clusters (truncate --size=END IMAGE), then qemu-img check -r leaks: it "
     "does "
     "not look past the end of the file"},
    {"bad-refcount-block", kRepair},
    {"copied-set",
     "do not write to the image: qemu-img check -r all repairs it, but for compressed clusters: for those, "
     "qchain "
     "restore IMAGE COPY --format qcow2 writes a sound image"},
    {"copied-missing", kRepair},
    {"bad-snapshot",
     "qemu-img check -r all repairs what it can; where it does not, qchain restore IMAGE COPY --format qcow2 "
     "writes an image without snapshots"},
    {"bad-bitmap",
     "QEMU may refuse to open the image: qchain restore IMAGE COPY --format qcow2 writes one without "
     "bitmaps; "
     "take a full backup next"},
}};

// Neighbours' entries are at most that far apart: an extended L2 entry.
constexpr std::uint64_t kMaxEntryBytes = 16;

bool alike(const Finding& a, const Finding& b) {
  return a.severity == b.severity && a.what == b.what && a.guest.has_value() == b.guest.has_value() &&
         a.value.has_value() == b.value.has_value();
}

// Whether `next` continues `last`: clusters side by side, or entries side by side.
bool continues(const Finding& last, HostOffset last_at, const Finding& next) {
  if (last.guest && last.guest->end != next.guest->begin) return false;
  if (!last.host.empty() && last.host.end == next.host.begin) return true;
  // Refcounts side by side are not: they are about clusters.
  const bool about_entries = last.host.empty() || last.guest.has_value();
  return about_entries && next.at > last_at && next.at - last_at <= kMaxEntryBytes;
}

void extend(Finding& finding, const Finding& next) {
  finding.count += next.count;
  if (finding.guest) finding.guest->end = next.guest->end;
  // Entries side by side need not point to clusters side by side.
  finding.host =
      finding.host.end == next.host.begin ? HostRange{finding.host.begin, next.host.end} : HostRange{};
}

}  // namespace

const char* to_string(Severity severity) noexcept {
  switch (severity) {
    case Severity::Leak:
      return "leak";
    case Severity::Harmless:
      return "harmless";
    case Severity::DataLoss:
      return "data loss";
  }
  return "?";
}

const char* to_string(Flaw flaw) noexcept { return kTexts[static_cast<std::size_t>(flaw)].name; }

const char* remedy_for(Flaw flaw) noexcept { return kTexts[static_cast<std::size_t>(flaw)].remedy; }

std::string describe(const Finding& finding) {
  std::string text = fmt::format("at {:#x}", finding.at.bytes());
  if (finding.value) text += fmt::format(" ({:#x})", *finding.value);
  text += ": " + finding.what;
  if (finding.count > 1) text += fmt::format("; {} in a row", finding.count);
  if (!finding.host.empty()) {
    text += fmt::format("; host [{:#x}, {:#x})", finding.host.begin.bytes(), finding.host.end.bytes());
  }
  if (finding.guest) text += "; guest " + to_string(*finding.guest);
  return text;
}

std::uint64_t FindingList::count(Severity severity) const noexcept {
  return by_severity_[static_cast<std::size_t>(severity)];
}

void FindingList::add(Finding finding) {
  const std::size_t flaw = index(finding.flaw);
  counts_[flaw] += finding.count;
  by_severity_[static_cast<std::size_t>(finding.severity)] += finding.count;
  host_bytes_[flaw] += finding.host.length();

  std::optional<Last>& last = last_[flaw];
  if (last && alike(last->finding, finding) && continues(last->finding, last->last_at, finding)) {
    extend(last->finding, finding);
    last->last_at = finding.at;
    if (last->kept) {
      kept_[*last->kept] = last->finding;
    } else {
      dropped_ += finding.count;
    }
    return;
  }
  std::optional<std::size_t> kept;
  if (kept_of_[flaw] < kKeptPerFlaw) {
    ++kept_of_[flaw];
    kept = kept_.size();
    kept_.push_back(finding);
  } else {
    dropped_ += finding.count;
  }
  const HostOffset at = finding.at;
  last = Last{kept, std::move(finding), at};
}

}  // namespace qchain
