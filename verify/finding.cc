#include "verify/finding.h"

#include <fmt/format.h>

#include <utility>

namespace qchain {

namespace {

constexpr std::array<const char*, kFlaws> kNames{
    "marked-corrupt",    "bad-extension",      "reserved-bits", "misaligned",
    "past-end",          "truncated",          "bad-entry",     "bad-stream",
    "overlap",           "refcount-low",       "refcount-high", "refcount-stale",
    "refcount-past-end", "bad-refcount-block", "copied-set",    "copied-missing",
    "bad-snapshot",      "bad-bitmap",
};

// The distance of adjacent entries is at most this: the size of an extended L2 entry.
constexpr std::uint64_t kMaxEntryBytes = 16;

bool alike(const Finding& a, const Finding& b) {
  return a.severity == b.severity && a.what == b.what && a.guest.has_value() == b.guest.has_value() &&
         a.value.has_value() == b.value.has_value();
}

// Whether `next` continues `last`: the clusters or the entries are adjacent.
bool continues(const Finding& last, HostOffset last_at, const Finding& next) {
  if (last.guest && last.guest->end != next.guest->begin) return false;
  if (!last.host.empty() && last.host.end == next.host.begin) return true;
  // Adjacent refcounts do not count: those findings are about clusters.
  const bool about_entries = last.host.empty() || last.guest.has_value();
  return about_entries && next.at > last_at && next.at - last_at <= kMaxEntryBytes;
}

void extend(Finding& finding, const Finding& next) {
  finding.count += next.count;
  if (finding.guest) finding.guest->end = next.guest->end;
  // Adjacent entries need not point to adjacent clusters.
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

const char* to_string(Flaw flaw) noexcept { return kNames[static_cast<std::size_t>(flaw)]; }

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
