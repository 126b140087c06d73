#include "qcow2/survey.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "qcow2/format.h"

namespace qchain {

namespace {

// Follows backing names, and collects problems.
class Surveyor {
 public:
  explicit Surveyor(const OpenOptions& options) : options_(options) {}

  Survey run(const std::string& path, ImageFormat format) {
    collect_errors([&] {
      policy_.emplace(path, options_);
      add(policy_->open_top(path), format);
    });
    while (follow_) collect_errors([this] { step(); });
    check_links();
    return std::move(survey_);
  }

 private:
  template <class Step>
  void collect_errors(Step&& step) {
    follow_ = false;
    try {
      step();
    } catch (const NotQcow2& error) {
      add_problem(ProblemKind::NotQcow2, survey_.layers.size(), error.outcome(), error.what(),
                  error.remedy());
    } catch (const Error& error) {
      add_problem(ProblemKind::Unopenable, survey_.layers.size(), error.outcome(), error.what(),
                  error.remedy());
    }
  }

  void add_problem(ProblemKind kind, std::size_t layer, Outcome outcome, const std::string& message,
                   Remedy remedy = Remedy::None) {
    survey_.problems.push_back({kind, layer, outcome, message, remedy});
  }

  void add(File file, ImageFormat format) {
    const FileIdentity identity = file.identity();
    if (std::ranges::find(seen_, identity) != seen_.end()) {
      throw Error(Outcome::Mismatch,
                  fmt::format("{}: is its own backing file, directly or indirectly: the chain has a loop",
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
        throw Error(Outcome::Incomplete, fmt::format("{}: has an external data file, but does not record its "
                                                     "name",
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
                fmt::format("{}: its backing file has format \"{}\"; only qcow2 and raw are supported",
                            image.path(), *format));
  }

  void check_links() {
    for (std::size_t i = 0; i < survey_.layers.size(); ++i) {
      const Layer& layer = survey_.layers[i];
      const std::optional<Identity> identity = layer.identity();
      if (!identity) continue;
      const bool has_backing = !layer.image()->header().backing_name.empty();
      const bool backing_is_open = i + 1 < survey_.layers.size();
      if (has_backing && !backing_is_open) continue;  // a problem of its own
      const std::string why = link_mismatch(*identity, has_backing,
                                            has_backing ? survey_.layers[i + 1].identity() : std::nullopt);
      if (why.empty()) continue;
      add_problem(ProblemKind::Link, i, Outcome::Mismatch,
                  fmt::format("{}: does not match its backing file: {}", layer.path(), why));
    }
  }

  const OpenOptions& options_;
  std::optional<Policy> policy_;
  Survey survey_;
  std::vector<FileIdentity> seen_;
  bool follow_ = false;
};

}  // namespace

bool Survey::is_whole() const {
  return std::ranges::all_of(problems,
                             [](const Problem& problem) { return problem.kind == ProblemKind::Link; });
}

Survey survey(const std::string& path, ImageFormat format, const OpenOptions& options) {
  return Surveyor(options).run(path, format);
}

}  // namespace qchain
