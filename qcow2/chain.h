#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "extent/block_device.h"
#include "qcow2/hole_map.h"
#include "qcow2/layer.h"
#include "qcow2/layer_usage.h"
#include "qcow2/survey.h"

namespace qchain {

/// Reads all of the layer's mapping. Throws Error (Mismatch) if an entry is corrupt.
LayerUsage usage_of(const Layer& layer);

class ChainMapper;

/// A chain of layers as the one disk that it describes. The chain is complete, unless it was opened with
/// open_for_salvage().
class Chain : public BlockDevice {
 public:
  ~Chain() override;
  /// Throws Error: for the first of survey()'s problems other than links, or as require_readable() does;
  /// NotQcow2 if the top image has no qcow2 header.
  static std::unique_ptr<Chain> open(const std::string& path, ImageFormat format, const OpenOptions& options);
  /// The same of files that are open already.
  static std::unique_ptr<Chain> open(Survey survey) { return open(std::move(survey), false); }
  /// Opens as much of a chain as there is; only the top image has to be readable. What would come from a
  /// layer that is missing or cannot be read is Data for extents() and map() (there without storage), and a
  /// reader throws ReadError for it, naming the cause. As usual, it throws Error (Mismatch) for corrupt
  /// metadata. A reader that throws has read what could be read of each request, and filled the rest with
  /// zeros.
  static std::unique_ptr<Chain> open_for_salvage(const std::string& path, ImageFormat format,
                                                 const OpenOptions& options);

  /// Why lower layers are missing; empty: the chain is complete.
  const std::string& missing() const noexcept { return missing_; }
  /// Layers whose recorded parent is not their backing file. They can be read all the same.
  const std::vector<Survey::Problem>& link_problems() const noexcept { return link_problems_; }
  bool has_link_problem(std::size_t layer) const;

  std::string name() const override { return top().path(); }
  std::uint64_t size() const override { return top().virtual_size(); }
  /// Zero where nothing has to be read: what no layer holds, and holes in a layer's file.
  Extents extents(const GuestRange& range) override;
  std::unique_ptr<Reader> open_reader() override { return open_reader_at(0); }
  /// A reader of the disk at an earlier point in time: as layer `first` and the layers below it describe it.
  std::unique_ptr<Reader> open_reader_at(std::size_t first) const;

  const std::vector<Layer>& layers() const noexcept { return layers_; }
  const Layer& top() const noexcept { return layers_.front(); }
  /// Whether `file` is one of the layers, or the external data file of one.
  bool contains(const FileIdentity& file) const;

  /// Which layer, from `first` down, has the bytes of `range`, and where: in order, without gaps, from
  /// range.begin on; never empty, but it may end before range.end. Inherit: no layer has them, and they read
  /// as zeros. What lies past the end of a layer is Zero, whatever lower layers hold. Throws Error if
  /// metadata is corrupt.
  std::vector<Mapping> map(const GuestRange& range, std::size_t first = 0) const;
  /// The same for layer `layer` alone. Inherit: the layer does not have the bytes.
  std::vector<Mapping> map_layer_alone(std::size_t layer, const GuestRange& range) const;
  /// The first `length` bytes of the same, as a stream. The chain has to outlive it.
  ExtentSource extents_of_layer(std::size_t layer, std::uint64_t length) const;

 private:
  Chain(Survey survey, bool salvage);

  static std::unique_ptr<Chain> open(Survey survey, bool salvage);
  Extents extents_without_holes(const GuestRange& range);

  std::vector<Layer> layers_;
  std::vector<Survey::Problem> link_problems_;
  std::string missing_;
  bool salvage_;
  // Of extents():
  std::unique_ptr<ChainMapper> mapper_;
  std::vector<HoleMap> holes_;  // by layer
};

}  // namespace qchain
