#include "qcow2/chain.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "qcow2/format.h"

namespace qchain {

namespace {

// How many pieces one answer of map() has at most.
constexpr std::size_t kMaxMappings = 16384;

// Follows backing names, noting what goes wrong.
class Surveyor {
 public:
  explicit Surveyor(const OpenOptions& options) : options_(options) {}

  Survey run(const std::string& path, ImageFormat format) {
    noting([&] {
      policy_.emplace(path, options_);
      add(policy_->open_top(path), format);
    });
    while (follow_) noting([this] { step(); });
    judge_links();
    return std::move(survey_);
  }

 private:
  template <class Step>
  void noting(Step&& step) {
    follow_ = false;
    try {
      step();
    } catch (const Error& error) {
      survey_.problems.push_back({survey_.layers.size(), error.outcome(), error.what()});
    }
  }

  void add(File file, ImageFormat format) {
    const FileIdentity identity = file.identity();
    if (std::ranges::find(seen_, identity) != seen_.end()) {
      throw Error(Outcome::Mismatch,
                  fmt::format("{}: is its own backing file, directly or through others: the chain has a "
                              "loop",
                              file.path()));
    }
    if (survey_.layers.size() == kMaxChainDepth) {
      throw Error(Outcome::Incomplete, fmt::format("{}: deeper than {} layers", file.path(), kMaxChainDepth));
    }
    seen_.push_back(identity);
    if (format == ImageFormat::Raw) {
      survey_.layers.emplace_back(RawFile(std::move(file)));
      return;
    }
    Image image(std::move(file));
    const Header& header = image.header();
    if (options_.allow_data_file && header.has_incompatible(kIncompatibleDataFile)) {
      if (header.data_file_name.empty()) {
        throw Error(Outcome::Incomplete, fmt::format("{}: keeps its data in another file and does not "
                                                     "record its name",
                                                     image.path()));
      }
      image.attach_data_file(policy_->open_referred(image.path(), header.data_file_name));
    }
    survey_.layers.emplace_back(std::move(image));
    follow_ = true;
  }

  void step() {
    const Image& image = *survey_.layers.back().image();
    const Header& header = image.header();
    if (header.backing_name.empty()) return;
    add(policy_->open_referred(image.path(), header.backing_name), backing_format(image));
  }

  static ImageFormat backing_format(const Image& image) {
    const std::optional<std::string>& format = image.header().backing_format;
    if (!format) {
      throw Error(Outcome::Incomplete,
                  fmt::format("{}: does not record the format of its backing file {}, and guessing would "
                              "be unsafe; record it with qemu-img rebase -u -b {} -F FORMAT",
                              image.path(), image.header().backing_name, image.header().backing_name));
    }
    if (*format == "qcow2") return ImageFormat::Qcow2;
    if (*format == "raw") return ImageFormat::Raw;
    throw Error(Outcome::Incomplete,
                fmt::format("{}: its backing file has format \"{}\"; qcow2 and raw can be read", image.path(),
                            *format));
  }

  void judge_links() {
    for (std::size_t i = 0; i < survey_.layers.size(); ++i) {
      const Layer& layer = survey_.layers[i];
      const std::optional<Identity> identity = layer.identity();
      if (!identity) continue;
      const bool has_backing = !layer.image()->header().backing_name.empty();
      const bool beneath_is_open = i + 1 < survey_.layers.size();
      if (has_backing && !beneath_is_open) continue;  // a problem of its own
      const std::string why =
          misfit(*identity, has_backing, has_backing ? survey_.layers[i + 1].identity() : std::nullopt);
      if (!why.empty()) {
        survey_.problems.push_back(
            {i, Outcome::Mismatch, fmt::format("{}: does not fit where it stands: {}", layer.path(), why)});
      }
    }
  }

  const OpenOptions& options_;
  std::optional<Policy> policy_;
  Survey survey_;
  std::vector<FileIdentity> seen_;
  bool follow_ = false;
};

Mapping raw_mapping(const Extent& extent) {
  const bool data = extent.kind == Kind::Data;
  return {extent.range,
          data ? Kind::Data : Kind::Zero,
          data ? Storage::Plain : Storage::None,
          HostOffset(data ? extent.range.begin.bytes() : 0),
          0,
          0};
}

// The mapping of one layer, whatever it is; see Mapper::map().
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

// A way through the mapping of a chain, from one layer down: remembers the tables that it read last.
class ChainMapper {
 public:
  ChainMapper(const std::vector<Layer>& layers, std::size_t first) : layers_(layers), first_(first) {
    const std::size_t remembered = std::min(layers.size(), first + kMaxRemembered);
    for (std::size_t layer = first; layer < remembered; ++layer) mappers_.emplace_back(layers[layer]);
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
    for (const GuestRange& nowhere : wanted) {
      found.push_back({nowhere, Kind::Inherit, Storage::None, {}, 0, layers_.size() - 1});
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
  // Tables of so many layers are kept, at most 64 KiB each: a chain may be hundreds deep.
  static constexpr std::size_t kMaxRemembered = 16;

  // Maps the `wanted` ranges in one layer. What it has goes to `found`, what it leaves to the layers below
  // goes to `below`. Returns how far the answer reaches: `end`, or less where `found` grew too long.
  GuestOffset map_layer(std::size_t layer, const std::vector<GuestRange>& wanted, GuestOffset end,
                        std::vector<Mapping>& found, std::vector<GuestRange>& below) {
    std::optional<LayerMapper> passing;
    const bool remembered = layer - first_ < mappers_.size();
    LayerMapper& mapper = remembered ? mappers_[layer - first_] : passing.emplace(layers_[layer]);
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
  std::vector<LayerMapper> mappers_;
};

namespace {

class ChainReader : public Reader {
 public:
  ChainReader(const Chain& chain, std::size_t first) : chain_(chain), mapper_(chain.layers(), first) {}

  void read(std::span<const ReadRequest> batch) override {
    for (const ReadRequest& request : batch) {
      for (GuestRange rest = request.range(); !rest.empty();) {
        for (const Mapping& mapping : mapper_.map(rest)) {
          fill(mapping, request.into.subspan(mapping.range.begin - request.begin, mapping.range.length()));
          rest.begin = mapping.range.end;
        }
      }
    }
  }

 private:
  void fill(const Mapping& mapping, std::span<std::byte> into) {
    if (mapping.kind != Kind::Data) {
      std::memset(into.data(), 0, into.size());
      return;
    }
    const Layer& layer = chain_.layers()[mapping.layer];
    if (mapping.storage == Storage::Plain) {
      // A raw file's last sector may be cut short; the rest of it reads as zeros.
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

  const Chain& chain_;
  ChainMapper mapper_;
  std::vector<std::byte> cluster_;
};

}  // namespace

const File& Layer::file() const noexcept {
  const Image* const qcow2 = image();
  return qcow2 != nullptr ? qcow2->file() : std::get<RawFile>(source_).file();
}

const File& Layer::data() const noexcept {
  const Image* const qcow2 = image();
  return qcow2 != nullptr ? qcow2->data() : file();
}

std::uint64_t Layer::virtual_size() const noexcept {
  const Image* const qcow2 = image();
  if (qcow2 == nullptr) return align_up(std::get<RawFile>(source_).size(), kSectorSize);
  return align_down(qcow2->header().virtual_size, kSectorSize);
}

std::optional<Identity> Layer::identity() const {
  const Image* const qcow2 = image();
  return qcow2 != nullptr ? qcow2->identity() : std::nullopt;
}

std::uint64_t Layer::true_length() const {
  if (image() == nullptr) return std::get<RawFile>(source_).size();
  const std::optional<Identity> known = identity();
  // What is recorded counts as long as nobody resized the image since.
  if (known && align_up(known->length, kSectorSize) == virtual_size()) return known->length;
  return virtual_size();
}

Survey survey(const std::string& path, ImageFormat format, const OpenOptions& options) {
  return Surveyor(options).run(path, format);
}

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
  Survey found = survey(path, format, options);
  if (!found.problems.empty()) {
    const Survey::Problem& first = found.problems.front();
    throw Error(first.outcome, first.message);
  }
  for (const Layer& layer : found.layers) {
    if (layer.image() != nullptr) layer.image()->require_readable();
  }
  return std::unique_ptr<Chain>(new Chain(std::move(found.layers)));
}

bool Chain::contains(const FileIdentity& file) const {
  return std::ranges::any_of(layers_, [&](const Layer& layer) {
    return layer.file().identity() == file || layer.data().identity() == file;
  });
}

Chain::Chain(std::vector<Layer> layers)
    : layers_(std::move(layers)), mapper_(std::make_unique<ChainMapper>(layers_, 0)) {}
Chain::~Chain() = default;

Extents Chain::extents(const GuestRange& range) {
  Extents extents;
  for (const Mapping& mapping : mapper_->map(range)) {
    qchain::append(extents, {mapping.range, mapping.kind == Kind::Data ? Kind::Data : Kind::Zero});
  }
  return extents;
}

std::unique_ptr<Reader> Chain::open_reader_at(std::size_t first) const {
  return std::make_unique<ChainReader>(*this, first);
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
  return ChainMapper(layers_, first).map(range);
}

}  // namespace qchain
