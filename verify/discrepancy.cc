#include "verify/discrepancy.h"

#include <algorithm>

namespace qchain {

const char* to_string(Cause cause) noexcept {
  switch (cause) {
    case Cause::Rotted:
      return "rotted";
    case Cause::Missed:
      return "missed by the dirty bitmap";
    case Cause::Below:
      return "damaged beneath";
    case Cause::Changed:
      return "changed";
    case Cause::Unknown:
      return "unknown";
    case Cause::Moving:
      return "moving";
  }
  return "?";
}

Outcome Findings::outcome() const noexcept {
  return worse(different_bytes != 0 ? Outcome::Mismatch : Outcome::Done, unread_outcome);
}

bool Findings::lists_all() const noexcept {
  const auto listed = [](const auto& list) {
    std::uint64_t bytes = 0;
    for (const auto& item : list) bytes += item.range.length();
    return bytes;
  };
  return listed(different) == different_bytes && listed(unread) == unread_bytes;
}

bool Findings::touches(const GuestRange& range) const {
  const auto meets = [&](const auto& item) { return !intersect(item.range, range).empty(); };
  return std::ranges::any_of(different, meets) || std::ranges::any_of(unread, meets);
}

void Findings::add_unread(const UnreadRange& range, std::size_t max_listed) {
  unread_bytes += range.range.length();
  unread_outcome = worse(unread_outcome, range.outcome);
  if (!unread.empty() && unread.back().message == range.message &&
      unread.back().range.end == range.range.begin) {
    unread.back().range.end = range.range.end;
  } else if (unread.size() < max_listed) {
    unread.push_back(range);
  }
}

}  // namespace qchain
