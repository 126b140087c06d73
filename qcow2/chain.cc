#include "qcow2/chain.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <utility>

#include "extent/cancellation.h"
#include "qcow2/format.h"

namespace qchain {

namespace {

// How many pieces one answer of map() has at most.
constexpr std::size_t kMaxMappings = 16384;

Mapping raw_mapping(const Extent& extent) {
  const bool data = extent.kind == Kind::Data;
  return {extent.range,
          data ? Kind::Data : Kind::Zero,
          data ? Storage::Plain : Storage::None,
          HostOffset(data ? extent.range.begin.bytes() : 0),
          0,
          0};
}

// The mapping of one layer, qcow2 or raw; see Mapper::map().
class LayerMapper {
 public:
  explicit LayerMapper(const Layer& layer) : layer_(layer) {
    if (layer.image() != nullptr) mapper_.emplace(*layer.image());
  }

  GuestOffset map(const GuestRange& range, std::size_t max, std::vector<Mapping>& mappings) {
    if (mapper_) return mapper_->map(range, max, mappings);
    GuestOffset at = range.begin;
    const RawFile& raw = *layer_.raw();
    const GuestOffset end(raw.size());
    while (at < range.end && mappings.size() < max) {
      if (at >= end) {  // the padding of the last sector
        append(mappings, {{at, range.end}, Kind::Zero, Storage::None, {}, 0, 0});
        return range.end;
      }
      throw_if_cancelled();
      for (const Extent& extent : raw.holes_and_data({at, std::min(range.end, end)})) {
        append(mappings, raw_mapping(extent));
        at = extent.range.end;
      }
    }
    return at;
  }

 private:
  const Layer& layer_;
  std::optional<Mapper> mapper_;
};

}  // namespace

// Maps ranges of a chain, from one layer down. Caches the parts of tables that it read last.
class ChainMapper {
 public:
  /// `is_cut`: lower layers are missing.
  ChainMapper(const std::vector<Layer>& layers, std::size_t first, bool is_cut)
      : layers_(layers), first_(first), is_cut_(is_cut) {
    const std::size_t cached = std::min(layers.size(), first + kMaxCachedLayers);
    for (std::size_t layer = first; layer < cached; ++layer) mappers_.emplace_back(layers[layer]);
  }

  /// See Chain::map().
  std::vector<Mapping> map(const GuestRange& range) {
    std::vector<Mapping> found;
    std::vector<GuestRange> wanted{range};
    GuestOffset end = range.end;
    for (std::size_t layer = first_; layer < layers_.size() && !wanted.empty(); ++layer) {
      std::vector<GuestRange> below;
      end = map_layer(layer, wanted, end, found, below);
      wanted = std::move(below);
    }
    const Kind kind = is_cut_ ? Kind::Data : Kind::Inherit;
    for (const GuestRange& unmapped : wanted) {
      found.push_back({unmapped, kind, Storage::None, {}, 0, layers_.size() - 1});
    }
    std::ranges::sort(found, {}, [](const Mapping& mapping) { return mapping.range.begin; });
    std::vector<Mapping> merged;
    for (Mapping& mapping : found) {
      mapping.range = intersect(mapping.range, {range.begin, end});
      append(merged, mapping);
    }
    return merged;
  }

 private:
  // Tables of so many layers are cached, at most 64 KiB each: a chain may be hundreds of layers deep.
  static constexpr std::size_t kMaxCachedLayers = 16;

  // Maps the `wanted` ranges in one layer. What it has goes to `found`, what it leaves to the layers below
  // goes to `below`. Returns how far the answer reaches: `end`, or less where `found` grew too long.
  GuestOffset map_layer(std::size_t layer, const std::vector<GuestRange>& wanted, GuestOffset end,
                        std::vector<Mapping>& found, std::vector<GuestRange>& below) {
    std::optional<LayerMapper> temporary;
    const bool cached = layer - first_ < mappers_.size();
    LayerMapper& mapper = cached ? mappers_[layer - first_] : temporary.emplace(layers_[layer]);
    const GuestOffset layer_end(layers_[layer].virtual_size());
    std::vector<Mapping> mappings;
    for (const GuestRange& whole : wanted) {
      const GuestRange range = intersect(whole, {GuestOffset(0), end});
      const GuestRange inside = intersect(range, {GuestOffset(0), layer_end});
      if (range.empty()) break;
      if (!inside.empty()) {
        mappings.clear();
        end = std::min(
            end, mapper.map(inside, kMaxMappings, mappings) == inside.end ? end : mappings.back().range.end);
        for (Mapping& mapping : mappings) {
          mapping.layer = layer;
          if (mapping.kind == Kind::Inherit) {
            below.push_back(mapping.range);
          } else {
            found.push_back(mapping);
          }
        }
      }
      const GuestRange past = intersect({std::max(range.begin, layer_end), range.end}, {GuestOffset(0), end});
      if (!past.empty()) found.push_back({past, Kind::Zero, Storage::None, {}, 0, layer});
      if (found.size() + below.size() >= kMaxMappings) return std::min(end, range.end);
    }
    return end;
  }

  const std::vector<Layer>& layers_;
  const std::size_t first_;
  const bool is_cut_;
  std::vector<LayerMapper> mappers_;
};

namespace {

class ChainReader : public Reader {
 public:
  ChainReader(const Chain& chain, std::size_t first, bool salvage)
      : chain_(chain), salvage_(salvage), mapper_(chain.layers(), first, !chain.missing().empty()) {}

  void read(std::span<const ReadRequest> batch) override {
    std::exception_ptr failure;
    for (const ReadRequest& request : batch) {
      if (salvage_) {
        salvage_read(request, failure);
      } else {
        read(request);
      }
    }
    if (failure) std::rethrow_exception(failure);
  }

 private:
  void read(const ReadRequest& request) {
    for (GuestRange rest = request.range(); !rest.empty();) {
      for (const Mapping& mapping : mapper_.map(rest)) {
        fill(mapping, request.into.subspan(mapping.range.begin - request.begin, mapping.range.length()));
        rest.begin = mapping.range.end;
      }
    }
  }

  // Reads what can be read, and keeps the first failure. A range that cannot be mapped is divided in halves.
  void salvage_read(const ReadRequest& request, std::exception_ptr& failure) {
    std::vector<Mapping> found;
    for (GuestRange rest = request.range(); !rest.empty();) {
      const auto bytes_of = [&](const GuestRange& range) {
        return request.into.subspan(range.begin - request.begin, range.length());
      };
      if (!attempt(failure, [&] { found = mapper_.map(rest); })) {
        const std::uint64_t half = align_up(rest.length() / 2, kSalvageUnit);
        const GuestRange first{rest.begin, rest.begin + std::min(half, rest.length())};
        if (rest.length() <= kSalvageUnit) {
          std::ranges::fill(bytes_of(rest), std::byte{0});
        } else {
          salvage_read({first.begin, bytes_of(first)}, failure);
        }
        rest.begin = first.end;
        continue;
      }
      for (const Mapping& mapping : found) {
        salvage_read(mapping, bytes_of(mapping.range), failure);
        rest.begin = mapping.range.end;
      }
    }
  }

  void salvage_read(const Mapping& mapping, std::span<std::byte> into, std::exception_ptr& failure) {
    if (attempt(failure, [&] { fill(mapping, into); })) return;
    if (mapping.storage != Storage::Plain || into.size() <= kSalvageUnit) {
      std::ranges::fill(into, std::byte{0});
      return;
    }
    const std::uint64_t half = align_up(into.size() / 2, kSalvageUnit);
    Mapping first = mapping;
    Mapping second = mapping;
    first.range.end = second.range.begin = mapping.range.begin + half;
    second.host = mapping.host + half;
    salvage_read(first, into.first(half), failure);
    salvage_read(second, into.subspan(half), failure);
  }

  template <class Action>
  static bool attempt(std::exception_ptr& failure, Action&& action) {
    try {
      action();
      return true;
    } catch (const Error& error) {
      if (!is_local(error)) throw;
      if (!failure) failure = std::current_exception();
      return false;
    }
  }

  void fill(const Mapping& mapping, std::span<std::byte> into) {
    if (mapping.kind != Kind::Data) {
      std::memset(into.data(), 0, into.size());
      return;
    }
    if (mapping.storage == Storage::None) {
      throw ReadError(fmt::format("{}: guest {} is in a lower layer that cannot be read ({})", chain_.name(),
                                  to_string(mapping.range), chain_.missing()),
                      ENODATA);
    }
    const Layer& layer = chain_.layers()[mapping.layer];
    if (mapping.storage == Storage::Plain) {
      // A raw file may end inside its last sector; the rest of it reads as zeros.
      const std::size_t held =
          layer.image() != nullptr
              ? into.size()
              : std::min<std::uint64_t>(into.size(), layer.true_length() - mapping.host.bytes());
      layer.data().read(mapping.host, into.first(held));
      std::memset(into.data() + held, 0, into.size() - held);
      return;
    }
    const Geometry& geometry = layer.image()->geometry();
    cluster_.resize(geometry.cluster_size());
    layer.image()->read_compressed(mapping, cluster_);
    const std::uint64_t within = geometry.offset_in_cluster(mapping.range.begin.bytes());
    std::memcpy(into.data(), cluster_.data() + within, into.size());
  }

  static constexpr std::uint64_t kSalvageUnit = 4096;  // the smallest range that is read by itself

  const Chain& chain_;
  const bool salvage_;
  ChainMapper mapper_;
  std::vector<std::byte> cluster_;
};

}  // namespace

LayerUsage usage_of(const Layer& layer) {
  LayerUsage usage;
  LayerMapper mapper(layer);
  std::vector<Mapping> mappings;
  const GuestOffset end(layer.virtual_size());
  for (GuestOffset at(0); at < end;) {
    mappings.clear();
    at = mapper.map({at, end}, kMaxMappings, mappings);
    for (const Mapping& mapping : mappings) {
      switch (mapping.kind) {
        case Kind::Data:
          usage.data += mapping.range.length();
          break;
        case Kind::Zero:
          usage.zero += mapping.range.length();
          break;
        case Kind::Inherit:
          usage.inherit += mapping.range.length();
          break;
      }
    }
  }
  return usage;
}

std::unique_ptr<Chain> Chain::open(const std::string& path, ImageFormat format, const OpenOptions& options) {
  return open(survey(path, format, options), false);
}

std::unique_ptr<Chain> Chain::open_for_salvage(const std::string& path, ImageFormat format,
                                               const OpenOptions& options) {
  return open(survey(path, format, options), true);
}

std::unique_ptr<Chain> Chain::open(Survey found, bool salvage) {
  for (const Survey::Problem& problem : found.problems) {
    if (problem.kind == ProblemKind::Link || (salvage && !found.layers.empty())) continue;
    if (problem.kind == ProblemKind::NotQcow2 && problem.layer == 0) {
      throw NotQcow2(problem.outcome, problem.message);
    }
    throw Error(problem.outcome, problem.message, problem.remedy);
  }
  for (std::size_t i = 0; i < found.layers.size(); ++i) {
    const Image* const image = found.layers[i].image();
    if (image == nullptr) continue;
    try {
      image->require_readable();
    } catch (const Error& error) {
      if (!salvage || i == 0) throw;
      found.layers.erase(found.layers.begin() + static_cast<std::ptrdiff_t>(i), found.layers.end());
      found.problems.insert(found.problems.begin(),
                            {ProblemKind::Unopenable, i, error.outcome(), error.what()});
    }
  }
  return std::unique_ptr<Chain>(new Chain(std::move(found), salvage));
}

bool Chain::has_link_problem(std::size_t layer) const {
  return std::ranges::any_of(link_problems_,
                             [&](const Survey::Problem& problem) { return problem.layer == layer; });
}

bool Chain::contains(const FileIdentity& file) const {
  return std::ranges::any_of(layers_, [&](const Layer& layer) {
    return layer.file().identity() == file || layer.data().identity() == file;
  });
}

Chain::Chain(Survey found, bool salvage) : layers_(std::move(found.layers)), salvage_(salvage) {
  for (Survey::Problem& problem : found.problems) {
    if (problem.kind == ProblemKind::Link) {
      link_problems_.push_back(std::move(problem));
    } else if (missing_.empty()) {
      missing_ = std::move(problem.message);
    }
  }
  mapper_ = std::make_unique<ChainMapper>(layers_, 0, !missing_.empty());
  for (const Layer& layer : layers_) holes_.emplace_back(layer.data());
}
Chain::~Chain() = default;

Extents Chain::extents_without_holes(const GuestRange& range) {
  Extents extents;
  for (const Mapping& mapping : mapper_->map(range)) {
    const bool data = mapping.kind == Kind::Data;
    HoleMap& holes = holes_[mapping.layer];
    if (!data || mapping.storage != Storage::Plain || !holes.is_sparse()) {
      qchain::append(extents, {mapping.range, data ? Kind::Data : Kind::Zero});
      continue;
    }
    // The rest of a long answer is left to the next call.
    for (GuestRange rest = mapping.range; !rest.empty() && extents.size() < kMaxMappings;) {
      const HoleMap::Run run = holes.at(mapping.host + (rest.begin - mapping.range.begin), rest.length());
      qchain::append(extents, {{rest.begin, rest.begin + run.length}, run.is_hole ? Kind::Zero : Kind::Data});
      rest.begin = rest.begin + run.length;
    }
    if (extents.size() >= kMaxMappings) break;
  }
  return extents;
}

Extents Chain::extents(const GuestRange& range) {
  if (!salvage_) return extents_without_holes(range);
  constexpr std::uint64_t kBlock = std::uint64_t{64} << 10;
  for (std::uint64_t length = range.length();;) {
    const GuestRange part{range.begin, range.begin + length};
    try {
      return extents_without_holes(part);
    } catch (const Error& error) {
      if (!is_local(error)) throw;
      // Unknown, so a reader has to try.
      if (length <= kBlock) return {{part, Kind::Data}};
    }
    length = align_up(length / 2, kBlock);
  }
}

std::unique_ptr<Reader> Chain::open_reader_at(std::size_t first) const {
  return std::make_unique<ChainReader>(*this, first, salvage_);
}

std::vector<Mapping> Chain::map_layer_alone(std::size_t layer, const GuestRange& range) const {
  std::vector<Mapping> mappings;
  const GuestOffset end(layers_[layer].virtual_size());
  const GuestRange inside = intersect(range, {GuestOffset(0), end});
  if (inside.empty()) return {{range, Kind::Inherit, Storage::None, {}, 0, layer}};
  LayerMapper(layers_[layer]).map(inside, kMaxMappings, mappings);
  for (Mapping& mapping : mappings) mapping.layer = layer;
  return mappings;
}

ExtentSource Chain::extents_of_layer(std::size_t layer, std::uint64_t length) const {
  return [this, layer, rest = guest_range(0, length), window = std::vector<Mapping>{},
          next = std::size_t{0}]() mutable -> std::optional<Extent> {
    if (next == window.size()) {
      if (rest.empty()) return std::nullopt;
      window = map_layer_alone(layer, rest);
      next = 0;
      rest.begin = window.back().range.end;
    }
    const Mapping& mapping = window[next++];
    return Extent{mapping.range, mapping.kind};
  };
}

std::vector<Mapping> Chain::map(const GuestRange& range, std::size_t first) const {
  return ChainMapper(layers_, first, !missing_.empty()).map(range);
}

}  // namespace qchain
