#include "cli/selftest.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <utility>

#include "cli/command_line.h"
#include "cli/api/text.h"
#include "extent/engine.h"
#include "extent/memory_device.h"
#include "qcow2/format.h"
#include "verify/chain_proof.h"
#include "verify/check.h"
#include "verify/layer_build.h"

namespace qchain {

namespace fs = std::filesystem;

namespace {

constexpr std::uint64_t kCluster = std::uint64_t{64} << 10;
constexpr std::uint64_t kDisk = 16 * kCluster;

// A temporary directory, removed by the destructor.
class Folder {
 public:
  Folder() : path_((fs::temp_directory_path() / "qchain-selftest-XXXXXX").string()) {
    if (mkdtemp(path_.data()) == nullptr) throw system_error(fmt::format("{}: cannot create", path_), errno);
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A disk whose cluster i is filled with `marks[i]`; 0: inherited.
MemoryDevice disk_of(const std::string& marks) {
  std::vector<std::byte> bytes(kDisk);
  Extents extents;
  for (std::uint64_t i = 0; i < marks.size(); ++i) {
    const auto cluster = std::span(bytes).subspan(i * kCluster, kCluster);
    std::ranges::fill(cluster, marks[i] == '.' ? std::byte{0} : static_cast<std::byte>(marks[i]));
    append(extents, {guest_range(i * kCluster, kCluster), marks[i] == '.' ? Kind::Inherit : Kind::Data});
  }
  return {std::move(bytes), std::move(extents), kDisk};
}

void write_sample(const std::string& path, const std::string& marks, RestorePoints* parent) {
  MemoryDevice disk = disk_of(marks);
  LayerRecipe recipe;
  recipe.output = path;
  recipe.existing = Existing::Replace;
  recipe.parent = parent;
  recipe.identity.id = random_uuid();
  recipe.identity.length = kDisk;
  LayerBuild build(std::move(recipe));
  build.write(disk);
  build.finish();
  build.commit();
}

void write_chain(const Folder& folder) {
  write_sample(folder / "full.qcow2", "aabbccdd....eeff", nullptr);
  const auto parent = Chain::open(folder / "full.qcow2", ImageFormat::Qcow2, {});
  RestorePoints points(*parent);
  write_sample(folder / "next.qcow2", "..gg....hh......", &points);
}

// What `qchain verify` checks.
Outcome verify_chain(const std::string& image) {
  Survey surveyed = survey(image, ImageFormat::Qcow2, {});
  Outcome outcome = check_chain(surveyed, Payloads::All).outcome(false);
  if (!surveyed.problems.empty()) return outcome;
  const auto chain = Chain::open(std::move(surveyed));
  RestorePoints points(*chain);
  ProofOptions options;
  options.workers = default_workers();
  for (const LayerProof& layer : prove_chain(points, options)) outcome = worse(outcome, layer.outcome());
  return outcome;
}

void flip(const std::string& path, std::uint64_t offset, std::byte bits) {
  const File file(open(path.c_str(), O_RDWR | O_CLOEXEC), path);
  std::byte byte{};
  file.read(HostOffset(offset), std::span(&byte, 1));
  byte ^= bits;
  file.write(HostOffset(offset), std::span(&byte, 1));
}

// The host offset of cluster `index` of the disk, in the layer that holds it.
HostOffset host_of(const Folder& folder, const char* image, std::uint64_t index) {
  const auto chain = Chain::open(folder / image, ImageFormat::Qcow2, {});
  return chain->map(guest_range(index * kCluster, kCluster)).front().host;
}

// The offset of the L2 entry of cluster `index`; there is one L2 table.
std::uint64_t l2_entry(const Folder& folder, const char* image, std::uint64_t index) {
  const auto chain = Chain::open(folder / image, ImageFormat::Qcow2, {});
  const Image& top = *chain->top().image();
  std::array<std::byte, sizeof(std::uint64_t)> raw{};
  top.file().read(top.header().l1_table, raw);
  return decode_l1(decode_struct<Be64>(raw.data())).table.bytes() + index * sizeof(std::uint64_t);
}

struct Damage {
  const char* what;
  std::function<void(const Folder&)> apply;
};

const std::vector<Damage>& damages() {
  constexpr std::byte kBit{1};
  static const std::vector<Damage> all{
      {"a byte of data in the newest layer",
       [](const Folder& f) { flip(f / "next.qcow2", host_of(f, "next.qcow2", 2).bytes() + 7, kBit); }},
      {"a byte of data in the full image, hidden by the newest layer",
       [](const Folder& f) { flip(f / "full.qcow2", host_of(f, "full.qcow2", 2).bytes(), kBit); }},
      {"a cluster that turned into zeros",
       [](const Folder& f) { flip(f / "next.qcow2", l2_entry(f, "next.qcow2", 2) + 7, kBit); }},
      {"a pointer to another cluster",
       [](const Folder& f) { flip(f / "next.qcow2", l2_entry(f, "next.qcow2", 2) + 5, kBit); }},
      {"the size of the disk",
       [](const Folder& f) {
         flip(f / "next.qcow2", offsetof(HeaderV2, virtual_size) + 6, std::byte{0x40});
       }},
      {"a truncated file", [](const Folder& f) { fs::resize_file(f / "full.qcow2", 3 * kCluster + 5); }},
      {"a byte of a manifest", [](const Folder& f) { flip(f / "next.qcow2.manifest", 300, kBit); }},
      {"another layer's manifest",
       [](const Folder& f) {
         fs::copy_file(f / "full.qcow2.manifest", f / "next.qcow2.manifest",
                       fs::copy_options::overwrite_existing);
       }},
      {"another full image in place of the parent",
       [](const Folder& f) { write_sample(f / "full.qcow2", "aabbccdd....eeff", nullptr); }},
      {"a missing manifest", [](const Folder& f) { fs::remove(f / "full.qcow2.manifest"); }},
      {"a missing layer", [](const Folder& f) { fs::remove(f / "full.qcow2"); }},
  };
  return all;
}

}  // namespace

CommandLine command_line_for(SelftestOptions& o) {
  CommandLine line("selftest", "[options]",
                   "Writes a small chain into a temporary directory, damages copies of it in different ways, "
                   "and checks that each damage is detected. Exits 1 if one is not.");
  add_report_options(line, o.common);
  return line;
}

Outcome selftest(const SelftestOptions&, Console& console) {
  const Folder sample;
  write_chain(sample);
  Outcome verdict = verify_chain(sample / "next.qcow2") == Outcome::Done ? Outcome::Done : Outcome::Mismatch;
  console.print(fmt::format("{:64} {}\n", "an undamaged chain", verdict == Outcome::Done ? "good" : "BAD"));
  Json cases = Json::array();
  for (const Damage& damage : damages()) {
    const Folder copy;
    fs::copy(sample.path(), copy.path(), fs::copy_options::recursive);
    damage.apply(copy);
    const Outcome found = verify_chain(copy / "next.qcow2");
    if (found == Outcome::Done) verdict = Outcome::Mismatch;
    console.print(
        fmt::format("{:64} {}\n", damage.what, found == Outcome::Done ? "NOT DETECTED" : to_string(found)));
    cases.push_back(
        {{"damage", damage.what}, {"told", found != Outcome::Done}, {"outcome", to_string(found)}});
  }
  Json fields;
  fields["cases"] = cases;
  console.document(verdict, fields);
  return verdict;
}

}  // namespace qchain
