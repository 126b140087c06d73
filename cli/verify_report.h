// What `qchain verify` has to say, as text and as the JSON document of verify_report.schema.json.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "cli/verify.h"
#include "qcow2/chain.h"
#include "verify/check.h"
#include "verify/compare.h"
#include "verify/chain_proof.h"

namespace qchain {

/// That a layer was sealed although its content is not the recorded one, in words.
std::string accepted_text(const std::string& recorded_digest);

class VerifyReport {
 public:
  VerifyReport(const VerifyOptions& options, std::string mode);

  /// Something that was found, with what it means for the outcome.
  void add(Outcome outcome, const std::string& message);

  void take(const CheckReport& metadata);
  void take(const Chain& chain, const std::vector<LayerProof>& layers);
  void take(const Chain& chain, const Comparison& comparison, std::uint64_t live_bytes);
  /// Of the live side against stored digests alone.
  void take(const Chain& chain, const Proof& proof, std::uint64_t live_bytes);

  /// Prints it, and appends it to the image's log where --record asks for that. Returns the outcome.
  Outcome finish(Console& console);

 private:
  Outcome outcome() const;
  void take_links(const Chain& chain, const std::vector<LayerProof>& layers);
  void note(const std::string& message);
  Json content_json(const LayerProof& layer) const;
  std::string damage_text(const Chain& chain, const Damage& damage) const;
  std::string difference_text(const Chain& chain, const Difference& difference) const;
  void list(const Chain& chain, const Proof& proof, const std::string& read_from);
  void add_lines(const std::vector<std::string>& lines);
  std::string conclusion() const;

  const VerifyOptions& o_;
  std::string mode_;
  std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  Outcome selected_ = Outcome::Done;  // of what was selected, as if that were everything
  Json verdicts_ = Json::array();
  std::vector<std::string> layer_notes_;
  Json layers_ = Json::array();
  Json damages_ = Json::array();
  Json unread_ = Json::array();
  Json live_;
  std::string text_;
  std::string root_;
  bool all_listed_ = true;
  std::uint64_t read_bytes_ = 0;
  std::uint64_t asserted_bytes_ = 0;
  std::uint64_t damaged_bytes_ = 0;
  std::uint64_t unread_bytes_ = 0;
};

}  // namespace qchain
