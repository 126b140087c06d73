// inspect() and the log of proofs, as the library has them; what chaininfo prints of it is in e2e/.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "cli/api/proof_log.h"
#include "cli/api/qchain.h"
#include "tests/support.h"

namespace qchain::tests {
namespace {

class InspectTest : public testing::Test {
 protected:
  void SetUp() override {
    request_.image = folder_ / "top.qcow2";
    request_.map = true;
    must({"qemu-img", "create", "-q", "-f", "qcow2", folder_ / "base.qcow2", "8M"});
    must({"qemu-io", "-f", "qcow2", "-c", "write 0 1M", "-c", "write -z 2M 1M", folder_ / "base.qcow2"});
    must({"qemu-img", "create", "-q", "-f", "qcow2", "-b", folder_ / "base.qcow2", "-F", "qcow2",
          request_.image});
    must({"qemu-io", "-f", "qcow2", "-c", "write 512k 64k", "-c", "write -c 4M 64k", request_.image});
  }

  Folder folder_;
  InspectRequest request_;
};

std::vector<MapPiece> all_of(const InspectResult& chain) {
  std::vector<MapPiece> pieces;
  while (const std::optional<MapPiece> piece = chain.map()) pieces.push_back(*piece);
  return pieces;
}

TEST_F(InspectTest, TheMapIsThatOfTheChain) {
  const std::vector<Mapping> expected =
      whole_map(*Chain::open(request_.image, ImageFormat::Qcow2, request_.open));
  const InspectResult chain = inspect(request_);
  ASSERT_TRUE(chain.is_complete);
  std::filesystem::remove(request_.image);  // the map needs no name any more
  const std::vector<MapPiece> pieces = all_of(chain);
  ASSERT_EQ(pieces.size(), expected.size());
  ASSERT_GT(pieces.size(), 4U);
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const Mapping& mapping = expected[i];
    BlockSource source{mapping.layer, mapping.kind, std::nullopt, mapping.storage == Storage::Compressed};
    if (mapping.storage != Storage::None) source.host_offset = mapping.host.bytes();
    EXPECT_EQ(pieces[i].range, mapping.range);
    EXPECT_EQ(pieces[i].source, source) << to_string(mapping.range);
  }
  EXPECT_FALSE(chain.map()) << "the end stays the end";
}

TEST_F(InspectTest, WhatCannotBeReadIsAProblem) {
  std::filesystem::remove(folder_ / "base.qcow2");
  const InspectResult chain = inspect(request_);
  EXPECT_EQ(chain.outcome, Outcome::Io);
  EXPECT_FALSE(chain.is_complete);
  EXPECT_FALSE(chain.map);
  ASSERT_EQ(chain.layers.size(), 1U);
  EXPECT_EQ(chain.layers[0].usage->data, 128U << 10);
  ASSERT_EQ(chain.problems.size(), 1U);
  EXPECT_EQ(chain.problems[0].layer, std::nullopt);
}

TEST_F(InspectTest, CancellationEndsItAndItsMap) {
  Cancellation cancellation;
  qchain::Run run;
  run.cancellation = &cancellation;
  const InspectResult chain = inspect(request_, run);
  cancellation.request(Outcome::Interrupted);
  EXPECT_EQ(outcome_of([&] { inspect(request_, run); }), Outcome::Interrupted);
  EXPECT_EQ(outcome_of([&] { all_of(chain); }), Outcome::Interrupted);
}

class ProofLogTest : public testing::Test {
 protected:
  void write(const std::string& lines) { std::ofstream(image_ + ".proofs") << lines; }

  Folder folder_;
  const std::string image_ = folder_ / "image";
};

TEST_F(ProofLogTest, TheLastLineIsWhatWasAppended) {
  EXPECT_EQ(last_proof(image_), std::nullopt);
  const LoggedProof first{"2026-11-24T18:29:17Z",
                          "done",
                          "qchain 0.1.0",
                          "against",
                          2,
                          5,
                          true,
                          "sha256:00",
                          1,
                          2,
                          3,
                          4,
                          "abcd",
                          "nbd://x"};
  for (const LoggedProof& proof : {first, LoggedProof()}) {
    append_proof(image_, proof);
    EXPECT_EQ(last_proof(image_), proof);
  }
}

TEST_F(ProofLogTest, WhatIsNoProofCountsAsNone) {
  for (const char* const lines : {"", "\n", "{}", "[]\n", "{\n", "\xff\n", "{}\n\n", "{}\nnull\n"}) {
    write(lines);
    EXPECT_EQ(last_proof(image_), std::nullopt) << lines;
  }
}

TEST_F(ProofLogTest, FieldsOfOtherTypesAreNotThere) {
  LoggedProof expected;
  expected.mode = "drill";
  expected.parts = 3;
  for (const char* const line :
       {R"({"mode": "drill", "selection": {"parts": 3}})",
        R"({"mode": "drill", "selection": {"part": -2, "parts": 3, "only_earlier_findings": 1}, "time": 7,
            "outcome": [], "root": {}, "manifest": null, "layers": "2", "read_bytes": -1})"}) {
    std::string text = line;
    std::erase(text, '\n');
    write("{}\n" + text + '\n');
    EXPECT_EQ(last_proof(image_), expected) << line;
  }
}

}  // namespace
}  // namespace qchain::tests
