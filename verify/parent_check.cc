#include "verify/parent_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "verify/proof.h"

namespace qchain {

namespace {

constexpr std::int64_t kCoarsest = 2;  // seconds: the coarsest timestamps of common file systems

bool was_touched(const Layer& layer) {
  const std::optional<Identity> identity = layer.identity();
  const std::optional<std::int64_t> written = identity ? time_of(*identity) : std::nullopt;
  const FileStamp stamp = layer.file().stamp();
  return written && (stamp.nanoseconds != 0 || std::abs(stamp.seconds - *written) > kCoarsest);
}

void require_clean(const Proof& proof, const Layer& layer) {
  if (proof.is_clean()) return;
  const GuestRange where =
      proof.different.empty() ? proof.unread.front().range : proof.different.front().range;
  throw Error(
      Outcome::Mismatch,
      fmt::format(
          "{}: does not match its manifest, first at guest {}: it was damaged or written to since it was "
          "made; use an undamaged copy as the parent, or start a new chain with a full image",
          layer.path(), to_string(where)));
}

}  // namespace

void require_sound_parent(RestorePoints& parent, const Extents& ranges) {
  ProofOptions options;
  for (const Extent& extent : ranges) options.selection.only.push_back(extent.range);
  std::ranges::sort(options.selection.only, {}, &GuestRange::begin);
  for (std::size_t i = 0; i < parent.chain().layers().size() && !ranges.empty(); ++i) {
    if (!parent.verdict(i).belongs) continue;
    require_clean(prove_layer(parent, i, options), parent.chain().layers()[i]);
  }
}

ParentState check_parent(RestorePoints& parent, unsigned workers,
                         const std::function<void(const std::string&)>& note) {
  ParentState state = ParentState::AsWritten;
  for (std::size_t i = 0; i < parent.chain().layers().size(); ++i) {
    const Layer& layer = parent.chain().layers()[i];
    if (!was_touched(layer)) continue;
    if (!parent.verdict(i).belongs) {
      note(fmt::format(
          "{}: was written to or copied since it was made (its modification time differs from the "
          "recorded {}), and it has no manifest to compare it with",
          layer.path(), layer.identity()->time));
      state = ParentState::Unproven;
      continue;
    }
    note(fmt::format(
        "{}: was written to or copied since it was made (its modification time differs from the recorded "
        "{}); comparing its data with its manifest first",
        layer.path(), layer.identity()->time));
    ProofOptions options;
    options.workers = workers;
    require_clean(prove_layer(parent, i, options), layer);
  }
  return state;
}

}  // namespace qchain
