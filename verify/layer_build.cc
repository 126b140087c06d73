#include "verify/layer_build.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "extent/destination.h"
#include "qcow2/format.h"
#include "qcow2/policy.h"
#include "verify/proof.h"

namespace qchain {

namespace fs = std::filesystem;

namespace {

std::string canonical_directory_of(const std::string& path) {
  const fs::path directory = fs::path(path).parent_path();
  std::error_code error;
  fs::path canonical = fs::canonical(directory.empty() ? fs::path(".") : directory, error);
  if (error) throw system_error(fmt::format("{}: cannot be resolved", directory.string()), error.value());
  return canonical;
}

bool leads_to(const std::string& path, const File& file) {
  struct stat status {};
  return stat(path.c_str(), &status) == 0 && FileIdentity{status.st_dev, status.st_ino} == file.identity();
}

// The parent's name as the layer records it: relative to the layer's directory.
std::string backing_name_for(const std::string& output, const Layer& parent) {
  const fs::path directory = canonical_directory_of(output);
  // A link to a file may lead elsewhere tomorrow; the names of devices are links that stay.
  std::error_code error;
  const fs::path target = parent.file().is_regular()
                              ? fs::canonical(parent.path(), error)
                              : canonical_directory_of(parent.path()) / fs::path(parent.path()).filename();
  if (error) throw system_error(fmt::format("{}: cannot be resolved", parent.path()), error.value());
  std::string name = target.lexically_relative(directory).string();
  if (has_protocol(name)) name = "./" + name;
  if (name.size() > kMaxBackingName) {
    throw Error(Outcome::Usage,
                fmt::format("{}: the path to it from {} has {} bytes; at most {} are possible", parent.path(),
                            directory.string(), name.size(), kMaxBackingName));
  }
  // The name must lead to this file and no other.
  if (!leads_to(backing_path(output, name), parent.file())) {
    throw Error(Outcome::Io, fmt::format("{}: \"{}\" does not lead to it from {}", parent.path(), name,
                                         directory.string()));
  }
  return name;
}

// Neither image nor manifest may be a file of the parent's chain.
void protect(const std::string& output, const Chain& parent) {
  for (const std::string& path : {output, manifest_path(output)}) {
    const Destination found = resolve_destination(path);
    if (found.kind == DestinationKind::Nothing || !belongs_to(parent, found.identity)) continue;
    throw Error(Outcome::Usage, fmt::format("{}: is a layer of the parent's chain, or belongs to one", path));
  }
}

}  // namespace

bool belongs_to(const Chain& chain, const FileIdentity& file) {
  if (chain.contains(file)) return true;
  return std::ranges::any_of(chain.layers(), [&](const Layer& layer) {
    std::error_code error;
    const fs::path real = fs::canonical(layer.path(), error);
    const std::string path = error ? layer.path() : real.string();
    return std::ranges::any_of(
        std::vector<std::string>{manifest_path(path), manifest_of(layer), path + ".proofs"},
        [&](const std::string& name) {
          struct stat status {};
          return stat(name.c_str(), &status) == 0 && file == FileIdentity{status.st_dev, status.st_ino};
        });
  });
}

LayerBuild::LayerBuild(LayerRecipe recipe)
    : recipe_([&] {
        if (recipe.parent != nullptr) protect(recipe.output, recipe.parent->chain());
        return std::move(recipe);
      }()),
      image_(recipe_.output, recipe_.existing, recipe_.warn),
      slot_(image_, recipe_.existing, recipe_.manifest ? recipe_.identity.id : std::string(), recipe_.warn) {
  image_.bypass_cache();
  recipe_.layer.position = recipe_.parent != nullptr ? Position::Overlay : Position::Bottom;
  recipe_.identity.overlay = recipe_.parent != nullptr;
  if (recipe_.parent != nullptr) find_parent();
  manifest_ = begin_manifest();
  require_room_in_header();
}

LayerBuild::~LayerBuild() = default;

void LayerBuild::find_parent() {
  const Layer& parent = recipe_.parent->chain().top();
  backing_name_ = backing_name_for(image_.path(), parent);
  const std::optional<Identity> below = parent.identity();
  if (below) recipe_.identity.parent_id = below->id;
  for (const Layer& layer : recipe_.parent->chain().layers()) parent_stamps_.push_back(layer.file().stamp());
}

// The manifest that is written together with the layer; nullptr where none is wanted. Records in the identity
// what is known of the parent's digest.
std::unique_ptr<LayerManifest> LayerBuild::begin_manifest() {
  if (!recipe_.manifest) return nullptr;
  Identity& identity = recipe_.identity;
  ParentDigests parent;
  if (recipe_.parent != nullptr) parent = parent_digests(*recipe_.parent, 0);
  algorithm_ = recipe_.algorithm.value_or(parent.algorithm.value_or(Algorithm::Sha256));
  if (parent.digests && algorithm_ != *parent.algorithm) {
    parent.digests.reset();
    parent.root.reset();
    parent.unknown_because = fmt::format("the parent's digests are {}", to_string(*parent.algorithm));
  }
  if (recipe_.parent != nullptr && !parent.digests) unknown_because_ = parent.unknown_because;
  identity.parent_digest = text_of(parent.root);
  ManifestHeader header = header_for(identity, recipe_.origin);
  if (recipe_.point_of) name_point(header, *recipe_.point_of);
  header.algorithm = algorithm_;
  header.parent_root = parent.root;
  header.file = fs::path(image_.path()).filename();
  header.is_signed_unproven = recipe_.sign_unproven;
  if (recipe_.key != nullptr) require_signable(header, image_.path());
  const std::uint64_t parent_length =
      recipe_.parent != nullptr ? recipe_.parent->chain().top().true_length() : 0;
  return std::make_unique<LayerManifest>(slot_.path(), header, parent_length, std::move(parent.digests),
                                         recipe_.warn);
}

// A dry run: what the header is going to hold is as long as this.
void LayerBuild::require_room_in_header() const {
  Header header;
  header.cluster_bits = recipe_.layer.cluster_bits;
  Identity identity = recipe_.identity;
  if (recipe_.manifest && unknown_because_.empty()) {
    identity.digest = ContentDigest{algorithm_, Digest(digest_size(algorithm_))}.text();
  }
  header.identity = encode_identity(identity);
  header.backing_name = backing_name_;
  if (recipe_.parent != nullptr) header.backing_format = recipe_.parent->chain().top().format();
  encode_header(header);
}

const WrittenLayer& LayerBuild::write(BlockDevice& source) {
  const bool again = written_.file_bytes != 0;
  if (again) {
    image_.file().resize(0);
    manifest_.reset();  // its name is free again
    manifest_ = begin_manifest();
  }
  LayerOptions options = recipe_.layer;
  if (manifest_) options.observer = manifest_->observer();
  written_ = write_layer(source, image_.file(), options);
  return written_;
}

std::optional<ContentDigest> LayerBuild::finish() {
  std::optional<ContentDigest> digest;
  if (manifest_) {
    if (const auto root = manifest_->finish(recipe_.key)) digest = ContentDigest{algorithm_, *root};
  }
  recipe_.identity.digest = text_of(digest);
  image_.sync();
  return digest;
}

// A layer that is moved or written to while another one is written on top of it breaks the new one.
void LayerBuild::require_unchanged_parent() const {
  if (recipe_.parent == nullptr) return;
  const std::vector<Layer>& layers = recipe_.parent->chain().layers();
  if (!leads_to(backing_path(image_.path(), backing_name_), layers.front().file())) {
    throw Error(Outcome::Io, fmt::format("{}: was moved, removed or replaced while {} was written onto it",
                                         layers.front().path(), image_.path()));
  }
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (!leads_to(layers[i].path(), layers[i].file())) {
      throw Error(Outcome::Io,
                  fmt::format("{}: was moved, removed or replaced while {} was written onto its chain",
                              layers[i].path(), image_.path()));
    }
    if (layers[i].file().stamp() != parent_stamps_[i]) {
      throw Error(Outcome::Mismatch, fmt::format("{}: was written to while {} was written onto its chain",
                                                 layers[i].path(), image_.path()));
    }
  }
}

Header LayerBuild::complete(Header header) const {
  header.identity = encode_identity(recipe_.identity);
  header.backing_name = backing_name_;
  if (recipe_.parent != nullptr) header.backing_format = recipe_.parent->chain().top().format();
  return header;
}

void LayerBuild::commit() {
  require_unchanged_parent();
  write_header(image_.file(), complete(written_.header));
  if (const std::optional<std::int64_t> time = time_of(recipe_.identity)) image_.file().set_time(*time);
  image_.sync();
  if (manifest_) manifest_->publish();
  slot_.publish();
}

}  // namespace qchain
