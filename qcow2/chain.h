#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "extent/block_device.h"
#include "qcow2/hole_map.h"
#include "qcow2/layer.h"
#include "qcow2/survey.h"

namespace qchain {

/// The bytes that one layer holds itself.
struct LayerUsage {
  std::uint64_t data = 0;  ///< Including compressed, counted as guest bytes.
  std::uint64_t zero = 0;
  std::uint64_t inherit = 0;
};

/// Counts. Throws Error (Mismatch) at an entry that is corrupt.
LayerUsage usage_of(const Layer& layer);

class ChainMapper;

/// A chain of layers as the one disk that it describes. Only a whole chain becomes one, but for
/// open_for_salvage().
class Chain : public BlockDevice {
 public:
  ~Chain() override;
  /// Throws Error: the first of survey()'s problems but for links, or what require_readable() says. NotQcow2
  /// where the top image is none.
  static std::unique_ptr<Chain> open(const std::string& path, ImageFormat format, const OpenOptions& options);
  /// The same of files that are open already.
  static std::unique_ptr<Chain> open(Survey survey) { return open(std::move(survey), false); }
  /// As much of a chain as there is; only the top image has to be readable. What would come from a layer that
  /// is missing or cannot be read is Data for extents() and map() (there without storage), and a reader
  /// throws ReadError for it, naming the cause; as it throws Error (Mismatch) where metadata is corrupt. A
  /// reader that throws has read what could be read of each request, and left zeros for the rest.
  static std::unique_ptr<Chain> open_for_salvage(const std::string& path, ImageFormat format,
                                                 const OpenOptions& options);

  /// Why the chain ends before its bottom; empty: it does not.
  const std::string& missing() const noexcept { return missing_; }
  /// Layers that record that they were written on another one than the one beneath: findings, which are in no
  /// reader's way.
  const std::vector<Survey::Problem>& link_problems() const noexcept { return link_problems_; }
  /// Throws Error, the first of them, where there are any.
  void require_links() const;

  std::string name() const override { return top().path(); }
  std::uint64_t size() const override { return top().virtual_size(); }
  /// Zero where nothing has to be read: what no layer holds reads as zeros, as does a hole of a layer's file.
  Extents extents(const GuestRange& range) override;
  std::unique_ptr<Reader> open_reader() override { return open_reader_at(0); }
  /// A reader of the disk at an earlier point in time: of what layer `first` and those beneath it describe.
  std::unique_ptr<Reader> open_reader_at(std::size_t first) const;

  const std::vector<Layer>& layers() const noexcept { return layers_; }
  const Layer& top() const noexcept { return layers_.front(); }
  /// Whether `file` is one of the layers or holds the data of one, by whatever name.
  bool contains(const FileIdentity& file) const;

  /// Which layer has the bytes of `range`, and where: in order, without gaps, for a part of the range
  /// that is never empty. Inherit: no layer has them; they read as zeros, as does what lies past the end
  /// of a layer, whatever is beneath it. From layer `first` down. Throws Error where metadata is corrupt.
  std::vector<Mapping> map(const GuestRange& range, std::size_t first = 0) const;
  /// What layer `layer` holds itself; likewise. Inherit: nothing.
  std::vector<Mapping> map_layer_alone(std::size_t layer, const GuestRange& range) const;
  /// The first `length` bytes of the same as a stream. The chain has to outlive it.
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
