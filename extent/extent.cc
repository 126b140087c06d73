#include "extent/extent.h"

#include <algorithm>
#include <memory>
#include <utility>

namespace qchain {

namespace {

// The kinds seen in one unit, as a set.
class KindSet {
 public:
  void add(Kind kind) { bits_ |= bit(kind); }
  void clear() { bits_ = 0; }
  bool has(Kind kind) const { return (bits_ & bit(kind)) != 0; }

  Kind stored(Position position) const {
    if (has(Kind::Data)) return Kind::Data;
    if (position == Position::Bottom) return Kind::Inherit;
    if (has(Kind::Zero)) return has(Kind::Inherit) ? Kind::Data : Kind::Zero;
    return Kind::Inherit;
  }

 private:
  static unsigned bit(Kind kind) { return 1U << static_cast<unsigned>(kind); }
  unsigned bits_ = 0;
};

// Cuts a stream at unit boundaries, decides the kind of each unit, and merges the results.
class Normaliser {
 public:
  Normaliser(ExtentSource source, std::uint64_t unit, Position position)
      : source_(std::move(source)), unit_(unit), position_(position) {}

  std::optional<Extent> next() {
    while (ready_.size() < 2 && !ended_) advance();
    if (ready_.empty()) return std::nullopt;
    const Extent first = ready_.front();
    ready_.erase(ready_.begin());
    return first;
  }

 private:
  void advance() {
    const std::optional<Extent> extent = source_();
    if (!extent) {
      ended_ = true;
      close_unit();
      return;
    }
    GuestRange rest = extent->range;
    if (!started_) {
      started_ = true;
      unit_begin_ = position_in_stream_ = rest.begin;
    }
    while (!rest.empty()) {
      const GuestOffset whole_end(align_down(rest.end.bytes(), unit_));
      const bool at_boundary = rest.begin.bytes() % unit_ == 0;
      if (at_boundary && whole_end > rest.begin) {
        KindSet alone;
        alone.add(extent->kind);
        append(ready_, {{rest.begin, whole_end}, alone.stored(position_)});
        unit_begin_ = position_in_stream_ = rest.begin = whole_end;
      } else {
        rest.begin = absorb(rest, extent->kind);
        if (position_in_stream_.bytes() % unit_ == 0) close_unit();
      }
    }
  }

  // Takes as much of `rest` as is in the open unit; returns where that ends.
  GuestOffset absorb(const GuestRange& rest, Kind kind) {
    const std::uint64_t unit_end = checked_add(align_down(unit_begin_.bytes(), unit_), unit_);
    position_in_stream_ = std::min(rest.end, GuestOffset(unit_end));
    if (position_in_stream_ > rest.begin) kinds_.add(kind);
    return position_in_stream_;
  }

  void close_unit() {
    if (position_in_stream_ > unit_begin_) {
      append(ready_, {{unit_begin_, position_in_stream_}, kinds_.stored(position_)});
    }
    kinds_.clear();
    unit_begin_ = position_in_stream_;
  }

  ExtentSource source_;
  const std::uint64_t unit_;
  const Position position_;
  Extents ready_;  // decided; the last one may still grow
  KindSet kinds_;  // of the open unit, [unit_begin_, position_in_stream_)
  GuestOffset unit_begin_;
  GuestOffset position_in_stream_;
  bool started_ = false;
  bool ended_ = false;
};

// A stream with one extent of look-ahead, which can be consumed in parts.
class Head {
 public:
  explicit Head(ExtentSource source) : source_(std::move(source)) { refill(); }

  bool ended() const { return !current_; }
  const Extent& current() const { return *current_; }

  void drop_until(GuestOffset offset) {
    while (current_ && current_->range.end <= offset) refill();
    if (current_ && current_->range.begin < offset) current_->range.begin = offset;
  }

 private:
  void refill() {
    do {
      current_ = source_();
    } while (current_ && current_->range.empty());
  }

  ExtentSource source_;
  std::optional<Extent> current_;
};

// A lambda has to be copyable to become an ExtentSource; state is shared behind it instead.
template <class State>
ExtentSource source_of(std::shared_ptr<State> state) {
  return [state = std::move(state)] { return state->next(); };
}

struct Zip {
  Head a;
  Head b;
  std::function<Kind(Kind, Kind)> combine;

  std::optional<Extent> next() {
    if (a.ended() && b.ended()) return std::nullopt;
    const Extent& leader = a.ended() ? b.current() : a.current();
    GuestRange range = leader.range;
    if (!a.ended() && !b.ended()) {
      range.begin = std::min(a.current().range.begin, b.current().range.begin);
      range.end = std::min(a.current().range.end, b.current().range.end);
    }
    const Kind kind =
        combine(a.ended() ? Kind::Inherit : a.current().kind, b.ended() ? Kind::Inherit : b.current().kind);
    a.drop_until(range.end);
    b.drop_until(range.end);
    return Extent{range, kind};
  }
};

}  // namespace

const char* to_string(Kind kind) noexcept {
  switch (kind) {
    case Kind::Inherit:
      return "inherit";
    case Kind::Zero:
      return "zero";
    case Kind::Data:
      return "data";
  }
  return "?";
}

void append(Extents& extents, const Extent& extent) {
  if (extent.range.empty()) return;
  if (!extents.empty() && extents.back().kind == extent.kind &&
      extents.back().range.end == extent.range.begin) {
    extents.back().range.end = extent.range.end;
  } else {
    extents.push_back(extent);
  }
}

ExtentSource stream(Extents extents) {
  return [extents = std::move(extents), next = std::size_t{0}]() mutable -> std::optional<Extent> {
    if (next == extents.size()) return std::nullopt;
    return extents[next++];
  };
}

Extents collect(const ExtentSource& source) {
  Extents all;
  while (const std::optional<Extent> extent = source()) append(all, *extent);
  return all;
}

ExtentSource normalise(ExtentSource source, std::uint64_t unit, Position position) {
  return source_of(std::make_shared<Normaliser>(std::move(source), unit, position));
}

ExtentSource as_zeros(ExtentSource source) {
  return [source = std::move(source)] {
    std::optional<Extent> extent = source();
    if (extent && extent->kind == Kind::Inherit) extent->kind = Kind::Zero;
    return extent;
  };
}

ExtentSource clip(ExtentSource source, GuestRange range) {
  return [source = std::move(source), range]() -> std::optional<Extent> {
    while (std::optional<Extent> extent = source()) {
      if (extent->range.begin >= range.end) return std::nullopt;
      extent->range = intersect(extent->range, range);
      if (!extent->range.empty()) return extent;
    }
    return std::nullopt;
  };
}

ExtentSource zip(ExtentSource a, ExtentSource b, std::function<Kind(Kind, Kind)> combine) {
  return source_of(std::make_shared<Zip>(Zip{Head(std::move(a)), Head(std::move(b)), std::move(combine)}));
}

Kind either_data(Kind a, Kind b) noexcept {
  return a == Kind::Data || b == Kind::Data ? Kind::Data : Kind::Zero;
}

}  // namespace qchain
