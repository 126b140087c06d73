#pragma once

#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "extent/block_device.h"
#include "extent/error.h"
#include "extent/raw_file.h"
#include "qcow2/image.h"
#include "qcow2/policy.h"

namespace qchain {

/// One layer of a chain: a qcow2 image, or a raw base.
class Layer {
 public:
  explicit Layer(Image image) : source_(std::move(image)) {}
  explicit Layer(RawFile raw) : source_(std::move(raw)) {}

  /// nullptr for a raw base.
  const Image* image() const noexcept { return std::get_if<Image>(&source_); }
  /// nullptr for a qcow2 image.
  const RawFile* raw() const noexcept { return std::get_if<RawFile>(&source_); }

  const File& file() const noexcept;
  /// Where data clusters are: the file itself, or an external data file.
  const File& data() const noexcept;
  const std::string& path() const noexcept { return file().path(); }
  const char* format() const noexcept { return image() != nullptr ? "qcow2" : "raw"; }
  /// Bytes of the disk; of a raw file rounded up to sectors, as QEMU does.
  std::uint64_t virtual_size() const noexcept;
  std::optional<Identity> identity() const;
  /// Bytes that the disk had before it was rounded up to sectors, where that is known.
  std::uint64_t true_length() const;

 private:
  std::variant<Image, RawFile> source_;
};

enum class ImageFormat { Qcow2, Raw };

/// What following the backing names from the top led to: the layers that could be opened, and what was
/// wrong on the way.
struct Survey {
  struct Problem {
    std::size_t layer = 0;  ///< Whose; layers.size() for one that could not be opened.
    Outcome outcome = Outcome::Done;
    std::string message;
  };
  std::vector<Layer> layers;      ///< From the top.
  std::vector<Problem> problems;  ///< None: the chain is whole, and its links fit.
};

/// Follows a chain as far as it goes. Throws nothing for what an image says: all of it is a Problem.
Survey survey(const std::string& path, ImageFormat format, const OpenOptions& options);

/// The bytes that one layer holds itself.
struct LayerUsage {
  std::uint64_t data = 0;  ///< Including compressed, counted as guest bytes.
  std::uint64_t zero = 0;
  std::uint64_t inherit = 0;
};

/// Counts. Throws Error (Mismatch) at an entry that is corrupt.
LayerUsage usage_of(const Layer& layer);

class ChainMapper;

/// A chain of layers as the one disk that it describes. Only a whole chain becomes one.
class Chain : public BlockDevice {
 public:
  ~Chain() override;
  /// Throws Error: the first of survey()'s problems, or what require_readable() says.
  static std::unique_ptr<Chain> open(const std::string& path, ImageFormat format, const OpenOptions& options);

  std::string name() const override { return top().path(); }
  std::uint64_t size() const override { return top().virtual_size(); }
  /// Zero where nothing has to be read: what no layer holds reads as zeros.
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
  /// of a layer, whatever is beneath it. From layer `first` down.
  std::vector<Mapping> map(const GuestRange& range, std::size_t first = 0) const;
  /// What layer `layer` holds itself; likewise. Inherit: nothing.
  std::vector<Mapping> map_layer_alone(std::size_t layer, const GuestRange& range) const;
  /// The first `length` bytes of the same as a stream. The chain has to outlive it.
  ExtentSource extents_of_layer(std::size_t layer, std::uint64_t length) const;

 private:
  explicit Chain(std::vector<Layer> layers);

  std::vector<Layer> layers_;
  std::unique_ptr<ChainMapper> mapper_;  // of extents()
};

}  // namespace qchain
