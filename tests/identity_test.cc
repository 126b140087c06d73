// Layer identities, and whether a layer matches its backing file.
#include "qcow2/identity.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/random.h"
#include "tests/support.h"

namespace qchain::tests {
namespace {

class IdentityTest : public RandomTest {
 protected:
  // Random text with quotes, control characters and letters of other scripts.
  std::string any_text(std::size_t most) {
    std::string text;
    for (std::uint64_t length = random.below(most); length > 0; --length) {
      text += random.one_of<std::string>({"a", "Z", "-", "\"", "\\", "\n", "\x01", "\xC3\xA4", "/"});
    }
    return text;
  }

  Identity any_identity() {
    Identity identity;
    identity.overlay = random.chance(50);
    identity.id = random_uuid();
    if (random.chance(50)) identity.parent_id = random_uuid();
    identity.checkpoint = any_text(12);
    identity.since = any_text(12);
    identity.digest = any_text(12);
    identity.parent_digest = any_text(12);
    identity.time = any_text(12);
    identity.tool = any_text(12);
    identity.length = random.any_size();
    return identity;
  }
};

TEST_F(IdentityTest, SurvivesTheDisk) {
  for (int round = 0; round < 1000; ++round) {
    const Identity identity = any_identity();
    const std::string json = encode_identity(identity);
    ASSERT_LE(json.size(), 1024U);
    ASSERT_EQ(decode_identity(json, "image"), identity) << json;
    ASSERT_EQ(encode_identity(identity), json) << "the same bytes each time";
  }
}

TEST_F(IdentityTest, ALongOneIsRefusedNotCut) {
  Identity identity = any_identity();
  identity.checkpoint = std::string(1024, 'x');
  EXPECT_EQ(outcome_of([&] { encode_identity(identity); }), Outcome::Usage);
}

TEST_F(IdentityTest, DecodingIsTotal) {
  for (int round = 0; round < 3000; ++round) {
    std::string json = encode_identity(any_identity());
    for (std::uint64_t hits = random.between(1, 4); hits > 0; --hits) {
      json[random.below(json.size())] = static_cast<char>(random.word());
    }
    if (random.chance(20)) json.resize(random.below(json.size()));
    const Outcome outcome = outcome_of([&] { decode_identity(json, "image"); });
    EXPECT_TRUE(outcome == Outcome::Done || outcome == Outcome::Mismatch) << json;
  }
}

TEST_F(IdentityTest, DamageIsAMismatch) {
  const std::string id = "\"id\":\"6b1bbd4c-8ac9-4bb1-93b7-ee9c4f37b3f4\"";
  const auto outcome = [](const std::string& json) {
    return outcome_of([&] { decode_identity(json, "image"); });
  };
  EXPECT_EQ(outcome("{\"kind\":\"full\"," + id + ",\"length\":1}"), Outcome::Done);
  EXPECT_EQ(outcome("{\"kind\":\"full\"," + id + ",\"length\":1,\"new\":[]}"), Outcome::Done)
      << "a later version may say more";
  for (const std::string& json : {
           std::string(),
           std::string("{}"),
           std::string("[]"),
           std::string("\"x\""),
           "{" + id + ",\"length\":1}",
           "{\"kind\":\"half\"," + id + ",\"length\":1}",
           "{\"kind\":1," + id + ",\"length\":1}",
           "{\"kind\":\"full\"," + id + "}",
           "{\"kind\":\"full\"," + id + ",\"length\":-1}",
           "{\"kind\":\"full\"," + id + ",\"length\":1.5}",
           "{\"kind\":\"full\"," + id + ",\"length\":1e99}",
           "{\"kind\":\"full\"," + id + ",\"length\":\"1\"}",
           "{\"kind\":\"full\"," + id + ",\"length\":1,\"tool\":1}",
           "{\"kind\":\"full\"," + id + ",\"length\":1,\"parent\":\"x\"}",
           std::string("{\"kind\":\"full\",\"id\":\"x\",\"length\":1}"),
           std::string("{\"kind\":\"full\",\"length\":1}"),
           "{\"kind\":\"full\"," + id + ",\"length\":1}" + std::string(1024, ' '),
           std::string(1000, '['),
       }) {
    EXPECT_EQ(outcome(json), Outcome::Mismatch) << json;
  }
}

TEST_F(IdentityTest, UuidsAreUuidsAndNew) {
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) {
    const std::string uuid = random_uuid();
    ASSERT_TRUE(is_uuid(uuid));
    EXPECT_EQ(uuid[14], '4') << "version";
    EXPECT_NE(std::string("89ab").find(uuid[19]), std::string::npos) << "variant";
    EXPECT_TRUE(seen.insert(uuid).second);
    for (std::size_t at = 0; at < uuid.size(); ++at) {
      std::string bad = uuid;
      bad[at] = bad[at] == '-' ? '0' : 'g';
      ASSERT_FALSE(is_uuid(bad));
    }
    EXPECT_FALSE(is_uuid(uuid + '0'));
    EXPECT_FALSE(is_uuid(uuid.substr(1)));
  }
}

TEST_F(IdentityTest, ALayerMatchesOnlyItsParent) {
  Identity parent = any_identity();
  parent.checkpoint = "monday";
  Identity child = any_identity();
  child.overlay = true;
  child.parent_id = parent.id;
  child.since = "monday";
  EXPECT_EQ(link_mismatch(child, true, parent), "");
  EXPECT_NE(link_mismatch(child, false, std::nullopt), "") << "a flat rebase";
  EXPECT_NE(link_mismatch(child, true, std::nullopt), "") << "on a layer without identity";
  EXPECT_NE(link_mismatch(child, true, any_identity()), "") << "on another layer";

  child.since = "tuesday";
  EXPECT_NE(link_mismatch(child, true, parent), "") << "changes since another checkpoint";
  child.since.clear();
  EXPECT_EQ(link_mismatch(child, true, parent), "") << "nothing recorded to compare";
  child.since = "monday";
  parent.checkpoint.clear();
  EXPECT_EQ(link_mismatch(child, true, parent), "");

  child.parent_id.clear();
  EXPECT_EQ(link_mismatch(child, true, std::nullopt), "") << "written on a parent without identity";
  EXPECT_NE(link_mismatch(child, false, std::nullopt), "");

  Identity full = any_identity();
  full.overlay = false;
  EXPECT_EQ(link_mismatch(full, false, std::nullopt), "");
  EXPECT_NE(link_mismatch(full, true, parent), "") << "a full layer that was put on something";
}

}  // namespace
}  // namespace qchain::tests
