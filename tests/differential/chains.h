// Random chains, made by QEMU's tools with every feature of the format that they support, and the results of
// those tools.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "qcow2/chain.h"
#include "tests/check/images.h"
#include "tests/random.h"
#include "tests/support.h"

namespace qchain::tests {

/// A chain, and how it was made.
struct RandomChain {
  std::vector<std::string> layers;          ///< Paths, from the top.
  std::vector<std::string> data_files;      ///< External ones.
  ImageFormat format = ImageFormat::Qcow2;  ///< Of the top; a raw top stands alone.
  std::vector<std::string> story;           ///< The commands, to be repeated by hand.

  const std::string& top() const { return layers.front(); }
  const char* format_name() const { return format == ImageFormat::Qcow2 ? "qcow2" : "raw"; }
  bool is_raw(std::size_t layer) const { return layers[layer].ends_with(".raw"); }
  OpenOptions options() const;
};

/// Makes a chain of one to five layers in `folder`. What QEMU refuses to do is left out.
RandomChain make_random_chain(Random& random, const Folder& folder);

/// What qemu-img reads; nothing where it cannot, or where it takes more than 20 s.
std::optional<Bytes> read_by_qemu(const RandomChain& chain, const Folder& folder);

}  // namespace qchain::tests
