// qchain check as users and programs see it.

#include <gtest/gtest.h>

#include "cli/check.h"
#include "tests/check/images.h"
#include "tests/parsed.h"

namespace qchain::tests {
namespace {

class CommandTest : public testing::Test {
 protected:
  struct Result {
    Outcome outcome = Outcome::Done;
    std::string output;
  };

  static Result run_check(std::vector<std::string> words) {
    testing::internal::CaptureStdout();
    Result result;
    const auto options = parsed<CheckOptions>(words);
    Console console("check", options.common.json, options.common.progress);
    result.outcome = check(options, console);
    std::fflush(stdout);
    result.output = testing::internal::GetCapturedStdout();
    return result;
  }

  std::string image() {
    const std::string path = folder_ / "image\x1b[31m.qcow2";
    must({"qemu-img", "create", "-q", "-f", "qcow2", path, "4M"});
    must({"qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", path});
    return path;
  }

  Folder folder_;
};

TEST_F(CommandTest, ASoundImage) {
  const std::string path = image();
  const Result text = run_check({path});
  EXPECT_EQ(text.outcome, Outcome::Done);
  EXPECT_NE(text.output.find("sound"), std::string::npos) << text.output;
  EXPECT_EQ(text.output.find('\x1b'), std::string::npos);
  const Json json = Json::parse(run_check({path, "--json"}).output);
  EXPECT_EQ(json["schema"], "qchain.check");
  EXPECT_EQ(json["exit_code"], 0);
  EXPECT_EQ(json["layers"][0]["outcome"], "done");
  EXPECT_TRUE(json["layers"][0]["findings"].empty());
}

TEST_F(CommandTest, LeaksFailWithStrict) {
  DamagedImage damaged(image());
  damaged.put(MetadataMap(damaged).refcount_at(0x50000), 7, 2);
  EXPECT_EQ(run_check({damaged.path()}).outcome, Outcome::Mismatch);  // COPIED with refcount 7
  damaged.restore();
  damaged.truncate(damaged.size() + 65536);
  damaged.put(MetadataMap(damaged).refcount_at(damaged.size()), 1, 2);
  EXPECT_EQ(run_check({damaged.path()}).outcome, Outcome::Done);
  EXPECT_EQ(run_check({damaged.path(), "--strict"}).outcome, Outcome::Mismatch);
  const Json json = Json::parse(run_check({damaged.path(), "--json", "--strict"}).output);
  EXPECT_EQ(json["exit_code"], 1);
  EXPECT_EQ(json["layers"][0]["leaks"], 1);
  EXPECT_EQ(json["layers"][0]["leaked_bytes"], 65536);
  const Json& finding = json["layers"][0]["findings"][0];
  EXPECT_EQ(finding["code"], "refcount-high");
  EXPECT_EQ(finding["severity"], "leak");
  EXPECT_EQ(finding["host_offset"], damaged.size());
  EXPECT_TRUE(finding["guest_offset"].is_null());
}

TEST_F(CommandTest, DamageIsReportedWithFileOffsetAndRemedy) {
  DamagedImage damaged(image());
  const MetadataMap metadata(damaged);
  damaged.put(metadata.l2.at(3).at, 0x80000000FF000000);
  const Result text = run_check({damaged.path()});
  EXPECT_EQ(text.outcome, Outcome::Mismatch);
  EXPECT_NE(text.output.find("past-end at 0x40018"), std::string::npos) << text.output;
  EXPECT_NE(text.output.find("0x80000000ff000000"), std::string::npos) << text.output;
  EXPECT_NE(text.output.find("guest [0x30000, 0x40000)"), std::string::npos) << text.output;
}

TEST_F(CommandTest, MissingImagesAndBadCommandLines) {
  EXPECT_EQ(run_check({folder_ / "nothing.qcow2"}).outcome, Outcome::Io);
  const Json json = Json::parse(run_check({folder_ / "nothing.qcow2", "--json"}).output);
  EXPECT_EQ(json["exit_code"], 3);
  EXPECT_EQ(json["problems"].size(), 1U);
  EXPECT_EQ(outcome_of([] { parsed<CheckOptions>({}); }), Outcome::Usage);
  EXPECT_EQ(outcome_of([] { parsed<CheckOptions>({"a", "--nonsense"}); }), Outcome::Usage);
}

}  // namespace
}  // namespace qchain::tests
