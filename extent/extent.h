// Extents, and the operations on them that all of qchain is built on.
//
// A layer of a chain and a list of extents are the same thing: each range of the guest's disk is
// inherited, zero or data. normalise() is the one function that decides what a layer stores; NBD
// contexts, L2 entries, chain resolution, comparison and restore are combinations of the rest.
//
// Extents come as streams, because a disk can have millions of them.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "extent/kind.h"
#include "extent/range.h"

namespace qchain {

struct Extent {
  GuestRange range;
  Kind kind = Kind::Inherit;

  friend bool operator==(const Extent&, const Extent&) = default;
};

using Extents = std::vector<Extent>;

/// Adds `extent` at the end, as a part of the last one where the two touch and are of one kind.
/// An empty extent is dropped.
void append(Extents& extents, const Extent& extent);

/// A stream: extents in guest order, each beginning where the last one ended; nullopt at the end.
/// Neighbours may be of one kind.
using ExtentSource = std::function<std::optional<Extent>()>;

/// The stream of a list. Owns a copy.
ExtentSource stream(Extents extents);
/// All of a stream, merged. For tests and small disks: it holds everything in memory.
Extents collect(const ExtentSource& source);

/// Whether a layer has a backing file: a bottom layer has none.
enum class Position { Bottom, Overlay };

/// What a layer of clusters of `unit` bytes stores for the disk that `source` describes: every extent
/// begins on a multiple of `unit`, and ends on one or at the disk's end.
///
/// - Bottom: Zero becomes Inherit; a unit with any Data is Data.
/// - Overlay: a unit that mixes kinds is Data, since the source can supply all of its bytes; Zero
///   stays Zero, or the old data of the layer below would come back.
///
/// Idempotent: normalise(normalise(E)) == normalise(E).
ExtentSource normalise(ExtentSource source, std::uint64_t unit, Position position);

/// `source`, with Zero for Inherit: what a bottom layer reads as.
ExtentSource as_zeros(ExtentSource source);

/// The part of `source` that is inside `range`.
ExtentSource clip(ExtentSource source, GuestRange range);

/// Two streams over one disk side by side, cut where either changes. The shorter one is Inherit past
/// its end. `combine` gives the kind of each piece.
ExtentSource zip(ExtentSource a, ExtentSource b, std::function<Kind(Kind, Kind)> combine);

/// Data where either is Data, else Zero: what has to be read to compare two disks.
Kind either_data(Kind a, Kind b) noexcept;

}  // namespace qchain
