#include "verify/check.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "extent/cancellation.h"
#include "qcow2/bitmap.h"
#include "qcow2/format.h"
#include "verify/inventory.h"
#include "verify/recount.h"
#include "verify/reference_count.h"
#include "verify/reference_walk.h"

namespace qchain {

namespace {

constexpr std::size_t kMaxBitmapNotes = 100;

// Finds the guest ranges of clusters with a wrong reference count. The counters do not record where
// references come from, so this takes another walk.
class Locator {
 public:
  explicit Locator(FindingList& findings) {
    for (Finding& finding : findings.kept()) {
      const bool counted = finding.flaw == Flaw::Overlap || finding.flaw == Flaw::RefcountLow ||
                           finding.flaw == Flaw::CopiedSet || finding.flaw == Flaw::CopiedMissing;
      if (counted && !finding.guest && !finding.host.empty()) wanted_.push_back(&finding);
    }
    std::ranges::sort(wanted_, {}, [](const Finding* f) { return f->host.begin; });
    for (const Finding* f : wanted_) longest_ = std::max(longest_, f->host.length());
  }

  bool empty() const { return wanted_.empty(); }

  void see(const Reference& reference) {
    if (reference.guest.empty()) return;
    const std::uint64_t begin = reference.host.bytes();
    // A finding that begins before `earliest` ends before the reference begins.
    const HostOffset earliest(begin - std::min(begin, longest_));
    auto at = std::ranges::lower_bound(wanted_, earliest, {}, [](const Finding* f) { return f->host.begin; });
    for (; at != wanted_.end() && (*at)->host.begin.bytes() < begin + reference.length; ++at) {
      if ((*at)->host.end > reference.host) take(**at, reference);
    }
  }

 private:
  static void take(Finding& finding, const Reference& reference) {
    const bool about_entry = finding.flaw == Flaw::CopiedSet || finding.flaw == Flaw::CopiedMissing;
    if (!finding.guest) {
      finding.guest = reference.guest;
      if (about_entry) finding.at = reference.pointer;
    } else if (finding.guest->end == reference.guest.begin) {
      finding.guest->end = reference.guest.end;
    }
  }

  std::vector<Finding*> wanted_;
  std::uint64_t longest_ = 0;
};

// Finds the data clusters that a compressed stream really extends into. The length of a stream is given in
// sectors, and qemu-img check -r all counts a cluster that only padding extends into as referenced; that is
// not an overlap.
class SharedClusters {
 public:
  SharedClusters(const Image& image, const Recount& recount, EntryChecker& checker, FindingList& findings)
      : size_(image.geometry().cluster_size()),
        shared_(recount.shared_with_streams()),
        checker_(checker),
        findings_(findings) {}

  void see(const Reference& reference) {
    if (reference.structure != Structure::Compressed) return;
    const std::uint64_t begin = reference.host.bytes();
    const auto first = shared_.lower_bound(begin / size_);
    if (first == shared_.end() || first->first * size_ >= begin + reference.length) return;
    const std::uint64_t end = begin + checker_.stream_bytes(reference.host, reference.length);
    for (auto at = first; at != shared_.end() && at->first * size_ < end; ++at) {
      const auto& [cluster, references] = *at;
      if (!reported_.insert(cluster).second) continue;
      const HostOffset host(cluster * size_);
      findings_.add({Flaw::Overlap,
                     Severity::DataLoss,
                     reference.pointer,
                     fmt::format("used {} times: data and compressed data", references),
                     std::nullopt,
                     {host, host + size_},
                     {}});
    }
  }

 private:
  const std::uint64_t size_;
  const std::map<std::uint64_t, std::uint32_t>& shared_;
  EntryChecker& checker_;
  FindingList& findings_;
  std::set<std::uint64_t> reported_;
};

// Counts the references that a walk finds.
class Counter {
 public:
  Counter(const Image& image, ReferenceCount& count)
      : bits_(image.geometry().cluster_bits()),
        file_clusters_(divide_up(image.file_size(), image.geometry().cluster_size())),
        count_(count) {}

  void see(const Reference& reference) {
    const std::uint64_t begin = reference.host.bytes();
    std::uint64_t last = (begin + reference.length - 1) >> bits_;
    // The part of a compressed stream past the end of the file counts: QEMU frees it with the rest.
    if (reference.structure != Structure::Compressed) last = std::min(last, file_clusters_ - 1);
    count_.add(begin >> bits_, last, reference.structure, reference.references, reference.copied);
  }

 private:
  const unsigned bits_;
  const std::uint64_t file_clusters_;
  ReferenceCount& count_;
};

void note_bitmaps(const Image& image, std::vector<std::string>& notes) {
  const std::optional<BitmapDirectory> directory = bitmap_directory(image.header());
  if (!directory) return;
  if (!bitmaps_are_current(image.header())) {
    notes.push_back(fmt::format(
        "{} bitmaps are unusable: a program without support for bitmaps has written to the image; "
        "QEMU drops them, and their clusters count as leaked; make a full backup next",
        directory->count));
    return;
  }
  BitmapReader reader(image);
  std::size_t noted = 0;
  while (const std::optional<Bitmap> bitmap = reader.next()) {
    if (!bitmap->in_use()) continue;
    if (noted++ == kMaxBitmapNotes) break;
    notes.push_back(fmt::format(
        "bitmap \"{}\" is unusable: it was in use and not saved; make a full backup next", bitmap->name));
  }
}

void note_header(const Image& image, std::vector<std::string>& notes) {
  const Header& header = image.header();
  if (header.has_incompatible(kIncompatibleDirty)) {
    notes.emplace_back(
        "the image was not closed after writing: its refcounts are out of date until QEMU opens it for "
        "writing");
  }
  if ((header.autoclear_features & kAutoclearRawData) != 0 && !header.backing_name.empty()) {
    notes.emplace_back("autoclear bit 1 (raw external data) is invalid in an image with a backing file");
  }
}

// Lists what keeps the content from being read; the tables can still be checked.
void note_unchecked(const Image& image, std::vector<std::string>& unchecked) {
  for (const std::string& name : image.header().unsupported()) {
    unchecked.push_back(fmt::format("uses {}, which cannot be read", name));
  }
  if (image.header().has_incompatible(kIncompatibleDataFile) && !image.has_data_file()) {
    unchecked.push_back(
        fmt::format("its data is in \"{}\", which was not opened", image.header().data_file_name));
  }
}

void check_tables(const Image& image, Payloads payloads, LayerCheck& layer) {
  FindingList& findings = layer.findings;
  ReferenceWalk walk(image, take_inventory(image, findings));
  Recount recount(image, findings);
  EntryChecker checker(image, payloads, findings);
  ReferenceCount count;
  Counter counter(image, count);
  const ReferenceSink sink = [&](const Reference& reference) { counter.see(reference); };
  // Entries are checked once; if the counters exceed their budget, further walks follow.
  bool first = true;
  do {
    walk.run(sink, first ? &checker : nullptr, first ? &findings : nullptr);
    recount.refer(sink);
    recount.compare(count);
    first = false;
  } while (count.advance());
  if (!recount.shared_with_streams().empty()) {
    SharedClusters shared(image, recount, checker, findings);
    walk.run([&](const Reference& reference) { shared.see(reference); }, nullptr, nullptr);
  }
  layer.used_clusters = recount.used_clusters();
  layer.decoded_payloads = checker.decoded();

  Locator locator(findings);
  if (!locator.empty()) {
    walk.run([&](const Reference& reference) { locator.see(reference); }, nullptr, nullptr);
  }
}

}  // namespace

Outcome LayerCheck::outcome(bool strict) const {
  Outcome outcome = Outcome::Done;
  const bool broken = findings.count(Severity::DataLoss) != 0 || findings.count(Severity::Harmless) != 0;
  if (broken || (strict && findings.count(Severity::Leak) != 0)) outcome = Outcome::Mismatch;
  return unchecked.empty() ? outcome : worse(outcome, Outcome::Incomplete);
}

Outcome CheckReport::outcome(bool strict) const {
  Outcome all = Outcome::Done;
  for (const Survey::Problem& problem : problems) all = worse(all, problem.outcome);
  for (const LayerCheck& layer : layers) all = worse(all, layer.outcome(strict));
  return all;
}

LayerCheck check_layer(const Layer& layer, Payloads payloads) {
  LayerCheck result;
  result.path = layer.path();
  result.format = layer.format();
  result.file_bytes = layer.file().size();
  const Image* const image = layer.image();
  if (image == nullptr) return result;  // a raw base has no metadata
  result.cluster_bytes = image->geometry().cluster_size();
  note_header(*image, result.notes);
  note_unchecked(*image, result.unchecked);
  if ((image->header().incompatible_features & ~kKnownIncompatible) != 0) return result;
  note_bitmaps(*image, result.notes);
  check_tables(*image, payloads, result);
  return result;
}

CheckReport check_chain(const Survey& survey, Payloads payloads) {
  CheckReport report;
  report.problems = survey.problems;
  for (const Layer& layer : survey.layers) {
    try {
      report.layers.push_back(check_layer(layer, payloads));
    } catch (const Error& error) {
      if (is_cancelled(error)) throw;
      report.problems.push_back(
          {ProblemKind::Unopenable, report.layers.size(), error.outcome(), error.what()});
      report.layers.emplace_back().path = layer.path();
      report.layers.back().format = layer.format();
    }
  }
  return report;
}

}  // namespace qchain
