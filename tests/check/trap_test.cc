// Each kind of damage, one at a time: the finding, its severity, and what qemu-img check misses.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/check/images.h"

namespace qchain::tests {
namespace {

constexpr std::uint64_t kCluster = 64 << 10;
constexpr std::uint64_t kCopied = std::uint64_t{1} << 63;

class TrapTest : public testing::Test {
 protected:
  // Creates an image of 4 MiB unless told otherwise, and gives it to qemu-io.
  std::string make(const std::vector<std::string>& commands, const std::string& options = "cluster_size=64k",
                   const std::string& size = "4M") {
    const std::string path = folder_ / fmt::format("{}.qcow2", made_++);
    must({"qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, size});
    if (!commands.empty()) io(path, commands);
    return path;
  }

  static void io(const std::string& path, const std::vector<std::string>& commands) {
    std::vector<std::string> words{"qemu-io", "-f", "qcow2"};
    for (const std::string& command : commands) words.insert(words.end(), {"-c", command});
    words.push_back(path);
    must(words);
  }

  static const Finding* find(const CheckReport& report, Flaw flaw) {
    for (const LayerCheck& layer : report.layers) {
      for (const Finding& finding : layer.findings.kept()) {
        if (finding.flaw == flaw) return &finding;
      }
    }
    return nullptr;
  }

  // Expects findings with this flaw, and no others.
  static Finding expect_only(const CheckReport& report, Flaw flaw, Severity severity) {
    const Finding* const found = find(report, flaw);
    if (found == nullptr) {
      ADD_FAILURE() << "no " << qchain::to_string(flaw) << ", but:\n" << words_of(report);
      return {};
    }
    EXPECT_EQ(found->severity, severity) << words_of(report);
    EXPECT_EQ(report.layers.at(0).findings.kept().size(), 1U) << words_of(report);
    EXPECT_TRUE(report.problems.empty()) << words_of(report);
    return *found;
  }

  static void expect_sound(const CheckReport& report) {
    EXPECT_EQ(report.outcome(true), Outcome::Done) << words_of(report);
  }

  Folder folder_;
  int made_ = 0;
};

TEST_F(TrapTest, TheFileEndsInsideTheLastDataCluster) {
  DamagedImage image(make({"write -P 1 64k 64k"}));
  image.truncate(image.size() - 4096);
  EXPECT_EQ(check_by_qemu(image.path()), QemuVerdict::Clean);
  const Finding found = expect_only(check_by_us(image.path()), Flaw::Truncated, Severity::DataLoss);
  EXPECT_EQ(found.guest, guest_range(2 * kCluster - 4096, 4096));
}

TEST_F(TrapTest, DamagePastTheDisksEndIsHarmless) {
  DamagedImage image(make({"write -P 1 64k 1k"}, "cluster_size=64k", "66560"));
  image.truncate(image.size() - kCluster + 1024);
  expect_sound(check_by_us(image.path()));
  image.truncate(image.size() - kCluster + 1023);
  const Finding found = expect_only(check_by_us(image.path()), Flaw::Truncated, Severity::DataLoss);
  EXPECT_EQ(found.guest, guest_range(kCluster + 1023, 1));
}

TEST_F(TrapTest, OnlyAllocatedSubclustersAreMissed) {
  DamagedImage image(make({"write -P 1 2k 2k"}, "cluster_size=64k,extended_l2=on"));
  const MetadataMap metadata(image);
  const std::uint64_t host = metadata.host(metadata.l2.at(0));
  EXPECT_EQ(image.size(), host + 4096);  // QEMU ends the file here itself
  expect_sound(check_by_us(image.path()));
  image.truncate(host + 3000);
  const Finding found = expect_only(check_by_us(image.path()), Flaw::Truncated, Severity::DataLoss);
  EXPECT_EQ(found.guest, guest_range(3000, 4096 - 3000));
}

TEST_F(TrapTest, ADataClusterIsMissingAltogether) {
  DamagedImage image(make({"write -P 1 0 192k"}));
  image.truncate(image.size() - 2 * kCluster);
  const CheckReport report = check_by_us(image.path());
  const Finding* const found = find(report, Flaw::PastEnd);
  ASSERT_NE(found, nullptr) << words_of(report);
  EXPECT_EQ(found->count, 2U);
  EXPECT_EQ(found->guest, guest_range(kCluster, 2 * kCluster));
  EXPECT_EQ(count(report, Flaw::RefcountPastEnd), 2U) << words_of(report);
}

TEST_F(TrapTest, ACompressedStreamIsCut) {
  for (const char* type : {"zlib", "zstd"}) {
    DamagedImage image(make({"write -c -P 1 0 64k", "write -c -P 2 64k 64k"},
                            fmt::format("cluster_size=64k,compression_type={}", type)));
    // QEMU does not pad the last stream, which is valid.
    expect_sound(check_by_us(image.path(), Payloads::All));
    const MetadataMap metadata(image);
    const std::uint64_t stream = metadata.l2.at(1).raw & 0x003FFFFFFFFFFFFF;
    image.truncate(stream + 4);
    const Finding found = expect_only(check_by_us(image.path()), Flaw::Truncated, Severity::DataLoss);
    EXPECT_EQ(found.guest, guest_range(kCluster, kCluster)) << type;
    EXPECT_EQ(check_by_qemu(image.path()), QemuVerdict::Clean);
  }
}

TEST_F(TrapTest, APayloadDoesNotDecode) {
  DamagedImage image(make({"write -c -P 1 0 64k", "write -c -P 2 64k 64k", "write -P 3 128k 64k"}));
  const std::uint64_t stream = MetadataMap(image).l2.at(0).raw & 0x003FFFFFFFFFFFFF;
  image.put(stream, 0xFFFFFFFF, 4);
  EXPECT_EQ(check_by_qemu(image.path()), QemuVerdict::Clean);
  expect_sound(check_by_us(image.path()));
  const Finding found =
      expect_only(check_by_us(image.path(), Payloads::All), Flaw::BadStream, Severity::DataLoss);
  EXPECT_EQ(found.guest, guest_range(0, kCluster));
}

TEST_F(TrapTest, TheFileEndsInsideAnL2Table) {
  DamagedImage image(make({"write -z 0 64k", "write -z 1M 64k"}));
  image.truncate(image.size() - kCluster + 128);  // 16 entries are left
  EXPECT_NE(check_by_qemu(image.path()), QemuVerdict::Corrupt);
  const Finding found = expect_only(check_by_us(image.path()), Flaw::Truncated, Severity::DataLoss);
  EXPECT_EQ(found.guest, guest_range(16 * kCluster, (4 << 20) - 16 * kCluster));
}

TEST_F(TrapTest, RefcountsPastTheEndOfTheFile) {
  DamagedImage image(make({"write -P 1 0 64k"}));
  const MetadataMap metadata(image);
  image.put(metadata.refcount_at(image.size() + 3 * kCluster), 1, 2);
  image.put(metadata.refcount_at(image.size() + 4 * kCluster), 1, 2);
  EXPECT_EQ(check_by_qemu(image.path()), QemuVerdict::Clean);
  const CheckReport report = check_by_us(image.path());
  const Finding found = expect_only(report, Flaw::RefcountPastEnd, Severity::Leak);
  EXPECT_EQ(found.count, 2U);
  EXPECT_EQ(report.outcome(false), Outcome::Done);
  EXPECT_EQ(report.outcome(true), Outcome::Mismatch);
}

TEST_F(TrapTest, CopiedBits) {
  DamagedImage image(make({"write -P 1 0 64k", "write -c -P 2 64k 64k"}));
  const MetadataMap metadata(image);
  image.flip(metadata.l2.at(0).at, 63);
  Finding found = expect_only(check_by_us(image.path()), Flaw::CopiedMissing, Severity::Harmless);
  EXPECT_EQ(found.at.bytes(), metadata.l2.at(0).at);
  EXPECT_EQ(found.guest, guest_range(0, kCluster));
  image.restore();
  image.flip(metadata.l1.at(0).at, 63);
  found = expect_only(check_by_us(image.path()), Flaw::CopiedMissing, Severity::Harmless);
  EXPECT_EQ(found.at.bytes(), metadata.l1.at(0).at);
  image.restore();
  image.flip(metadata.l2.at(1).at, 63);
  found = expect_only(check_by_us(image.path()), Flaw::CopiedSet, Severity::DataLoss);
  EXPECT_EQ(found.at.bytes(), metadata.l2.at(1).at);
}

TEST_F(TrapTest, TwoEntriesMayShareACluster) {
  DamagedImage image(make({"write -P 1 0 64k", "write -P 1 64k 64k"}));
  const MetadataMap metadata(image);
  const std::uint64_t host = metadata.host(metadata.l2.at(0));
  const std::uint64_t other = metadata.host(metadata.l2.at(1));
  image.put(metadata.l2.at(0).at, host);
  image.put(metadata.l2.at(1).at, host);
  image.put(metadata.refcount_at(host), 2, 2);
  image.put(metadata.refcount_at(other), 0, 2);
  EXPECT_EQ(check_by_qemu(image.path()), QemuVerdict::Clean);
  expect_sound(check_by_us(image.path()));

  image.put(metadata.l2.at(1).at, host | kCopied);
  const Finding found = expect_only(check_by_us(image.path()), Flaw::CopiedSet, Severity::DataLoss);
  EXPECT_EQ(found.guest, guest_range(0, 2 * kCluster));
}

TEST_F(TrapTest, ARefcountIsTooLowOnASharedCompressedCluster) {
  DamagedImage image(make({"write -c -P 1 0 64k", "write -c -P 2 64k 64k", "write -P 3 128k 64k"}));
  const MetadataMap metadata(image);
  const std::uint64_t stream = metadata.l2.at(0).raw & 0x003FFFFFFFFFFFFF;
  image.put(metadata.refcount_at(stream), 1, 2);
  const Finding found = expect_only(check_by_us(image.path()), Flaw::RefcountLow, Severity::DataLoss);
  EXPECT_EQ(found.host.begin.bytes(), align_down(stream, kCluster));
  EXPECT_EQ(found.guest, guest_range(0, 2 * kCluster));
}

// A stream may have more sectors than it needs; they count, also past the end of the file.
TEST_F(TrapTest, ACompressedStreamClaimsAClusterPastTheEndOfTheFile) {
  DamagedImage image(make({"write -c -P 1 0 64k"}));
  const MetadataMap metadata(image);
  constexpr std::uint64_t kSectors = std::uint64_t{1} << 54;
  image.put(metadata.l2.at(0).at, metadata.l2.at(0).raw + 128 * kSectors);
  EXPECT_EQ(check_by_qemu(image.path()), QemuVerdict::Corrupt);
  EXPECT_EQ(count(check_by_us(image.path()), Flaw::PastEnd), 1U);

  // Less than a cluster: QEMU reports only the refcount.
  image.put(metadata.l2.at(0).at, metadata.l2.at(0).raw + 127 * kSectors);
  image.truncate(image.size() + 20000);
  EXPECT_EQ(check_by_qemu(image.path()), QemuVerdict::Clean) << "all of it is in the cluster";
  expect_sound(check_by_us(image.path(), Payloads::All));
  image.put(metadata.l2.at(0).at, metadata.l2.at(0).raw + 128 * kSectors);
  EXPECT_EQ(check_by_qemu(image.path()), QemuVerdict::Corrupt);
  const Finding found = expect_only(check_by_us(image.path()), Flaw::RefcountLow, Severity::DataLoss);
  EXPECT_EQ(found.guest, guest_range(0, kCluster));
  image.put(metadata.refcount_at(align_up(image.size(), kCluster)), 1, 2);
  EXPECT_EQ(check_by_qemu(image.path()), QemuVerdict::Clean);
  expect_sound(check_by_us(image.path(), Payloads::All));
}

TEST_F(TrapTest, StructuresOverlapAndTheRefcountMatches) {
  DamagedImage image(make({"write -P 1 0 64k"}));
  const MetadataMap metadata(image);
  const std::uint64_t victim = metadata.host(metadata.l1.at(0));
  const std::uint64_t left = metadata.host(metadata.l2.at(0));
  image.put(metadata.l2.at(0).at, victim);
  image.put(metadata.refcount_at(victim), 2, 2);
  image.put(metadata.l1.at(0).at, victim);
  image.put(metadata.refcount_at(left), 0, 2);
  EXPECT_EQ(check_by_qemu(image.path()), QemuVerdict::Clean);
  const Finding found = expect_only(check_by_us(image.path()), Flaw::Overlap, Severity::DataLoss);
  EXPECT_EQ(found.host, (HostRange{HostOffset(victim), HostOffset(victim + kCluster)}));
}

TEST_F(TrapTest, ManyLeaksAreOneFinding) {
  DamagedImage image(make({"write -P 1 0 4k"}, "cluster_size=512,refcount_bits=8", "1M"));
  const MetadataMap metadata(image);
  image.truncate(image.size() + 200 * 512);
  for (int i = 0; i < 200; ++i) image.put(metadata.refcount_at(image.size() + i * 512), 1, 1);
  EXPECT_EQ(check_by_qemu(image.path()), QemuVerdict::Leaks);
  const CheckReport report = check_by_us(image.path());
  const Finding found = expect_only(report, Flaw::RefcountHigh, Severity::Leak);
  EXPECT_EQ(found.count, 200U);
  EXPECT_EQ(report.layers.at(0).findings.host_bytes(Flaw::RefcountHigh), 200U * 512);
  EXPECT_EQ(report.outcome(false), Outcome::Done);
  EXPECT_EQ(report.outcome(true), Outcome::Mismatch);
}

TEST_F(TrapTest, DirtyImagesHaveStaleRefcounts) {
  DamagedImage image(make({"write -P 1 0 64k"}, "cluster_size=64k,lazy_refcounts=on"));
  const MetadataMap metadata(image);
  image.put(72, 1);
  image.put(metadata.refcount_at(metadata.host(metadata.l2.at(0))), 0, 2);
  const CheckReport report = check_by_us(image.path());
  expect_only(report, Flaw::RefcountStale, Severity::Leak);
  EXPECT_FALSE(report.layers.at(0).notes.empty());
  EXPECT_EQ(report.outcome(false), Outcome::Done);
}

TEST_F(TrapTest, BitmapsThatAreNotCurrentAreLeaks) {
  const std::string path = make({"write -P 1 0 64k"});
  must({"qemu-img", "bitmap", "-f", "qcow2", "--add", path, "b"});
  io(path, {"write -P 2 64k 64k"});
  expect_sound(check_by_us(path));
  DamagedImage image(path);
  image.put(88, 0);
  const CheckReport report = check_by_us(path);
  EXPECT_EQ(check_by_qemu(path), QemuVerdict::Leaks);
  EXPECT_EQ(verdict_of(report), QemuVerdict::Leaks) << words_of(report);
  EXPECT_FALSE(report.layers.at(0).notes.empty());

  image.restore();
  image.put(MetadataMap(image).bitmap_directory + 12, 1, 4);
  const CheckReport in_use = check_by_us(path);
  expect_sound(in_use);
  EXPECT_FALSE(in_use.layers.at(0).notes.empty());
}

TEST_F(TrapTest, WhatCannotBeCheckedIsReported) {
  DamagedImage image(make({"write -P 1 0 64k"}));
  image.put(72, std::uint64_t{1} << 40);
  EXPECT_EQ(check_by_us(image.path()).outcome(true), Outcome::Incomplete);
  image.restore();
  image.put(4, 4, 4);
  EXPECT_EQ(check_by_us(image.path()).outcome(true), Outcome::Incomplete);
  image.restore();
  image.put(32, 1, 4);
  EXPECT_EQ(check_by_us(image.path()).outcome(true), Outcome::Incomplete);
  image.restore();
  image.put(72, 2);
  expect_only(check_by_us(image.path()), Flaw::MarkedCorrupt, Severity::Harmless);
}

TEST_F(TrapTest, LuksHeadersAreCounted) {
  const std::string path = folder_ / "luks.qcow2";
  // QEMU times its hashes to find how many of them take so many milliseconds, and gives up where the clock
  // hardly moved.
  Finished created;
  for (int milliseconds = 10; milliseconds <= 2560; milliseconds *= 2) {
    created = run({"qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o",
                   "cluster_size=4k,encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=" +
                       std::to_string(milliseconds),
                   path, "4M"});
    if (created.status == 0) break;
  }
  ASSERT_EQ(created.status, 0) << created.output;
  const CheckReport report = check_by_us(path);
  EXPECT_EQ(report.outcome(true), Outcome::Incomplete) << words_of(report);
  EXPECT_TRUE(report.layers.at(0).findings.kept().empty()) << words_of(report);
}

TEST_F(TrapTest, ExternalDataFiles) {
  const std::string data = folder_ / "data.raw";
  DamagedImage image(make({"write -P 1 0 1M", "write -z 512k 64k"}, "data_file=" + data));
  EXPECT_EQ(check_by_us(image.path()).outcome(true), Outcome::Incomplete);
  const auto check_with_data = [&] {
    OpenOptions options;
    options.allow_data_file = true;
    return check_chain(survey(image.path(), ImageFormat::Qcow2, options), Payloads::Doubtful);
  };
  expect_sound(check_with_data());
  const MetadataMap metadata(image);
  image.put(metadata.l2.at(1).at, kCluster);
  expect_only(check_with_data(), Flaw::CopiedMissing, Severity::Harmless);
  image.restore();
  image.put(metadata.l2.at(1).at, kCopied | 2 * kCluster);
  expect_only(check_with_data(), Flaw::BadEntry, Severity::DataLoss);
  image.restore();
  std::filesystem::resize_file(data, kCluster * 15 + 1000);
  const Finding found = expect_only(check_with_data(), Flaw::Truncated, Severity::DataLoss);
  EXPECT_EQ(found.guest, guest_range(kCluster * 15 + 1000, kCluster - 1000));
}

TEST_F(TrapTest, ChainsAreCheckedAsFarAsTheyGo) {
  const std::string base = make({"write -P 1 0 64k"});
  const std::string top = folder_ / "top.qcow2";
  must({"qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top});
  io(top, {"write -P 2 0 1k"});
  CheckReport report = check_by_us(top);
  expect_sound(report);
  EXPECT_EQ(report.layers.size(), 2U);

  DamagedImage image(base);
  image.flip(MetadataMap(image).l2.at(0).at, 63);
  report = check_by_us(top);
  EXPECT_EQ(report.outcome(false), Outcome::Mismatch);
  EXPECT_TRUE(report.layers.at(0).findings.kept().empty());
  EXPECT_EQ(report.layers.at(1).findings.kept().size(), 1U);

  std::filesystem::remove(base);
  report = check_by_us(top);
  EXPECT_EQ(report.outcome(false), Outcome::Io);
  EXPECT_EQ(report.layers.size(), 1U);

  must({"qemu-img", "rebase", "-u", "-b", top, "-F", "qcow2", top});
  EXPECT_EQ(check_by_us(top).outcome(false), Outcome::Mismatch);
}

TEST_F(TrapTest, ADamagedSnapshotIsNamed) {
  const std::string path = make({"write -P 1 0 64k"});
  must({"qemu-img", "snapshot", "-c", "monday", path});
  io(path, {"write -P 2 0 64k"});
  DamagedImage image(path);
  const MetadataMap metadata(image);
  image.put(image.word(metadata.snapshot_table), 0x7000000);
  CheckReport report = check_by_us(path);
  const Finding* found = find(report, Flaw::PastEnd);
  ASSERT_NE(found, nullptr) << words_of(report);
  EXPECT_NE(found->what.find("of a snapshot"), std::string::npos);
  EXPECT_EQ(found->severity, Severity::DataLoss);
  image.restore();
  image.put(metadata.snapshot_table, 0x7000000);
  report = check_by_us(path);
  found = find(report, Flaw::PastEnd);
  ASSERT_NE(found, nullptr) << words_of(report);
  EXPECT_NE(found->what.find("\"monday\""), std::string::npos);
}

TEST_F(TrapTest, ARefcountTablePastTheEnd) {
  DamagedImage image(make({"write -P 1 0 64k"}));
  image.put(48, 0x7000000);
  Finding found = expect_only(check_by_us(image.path()), Flaw::Truncated, Severity::DataLoss);
  EXPECT_EQ(found.at.bytes(), 48U);
  image.restore();
  // Two clusters off the end of an image that has its refcounts there.
  const std::string path = folder_ / "ours.qcow2";
  const Bytes bytes(1 << 20, std::byte{7});
  MemoryDevice device(bytes, {{guest_range(0, 1 << 20), Kind::Data}}, 1 << 20);
  write_image(device, path, {});
  DamagedImage ours(path);
  const std::uint64_t table = MetadataMap(ours).refcount_table;
  if (table + kCluster == ours.size()) {
    ours.truncate(table);
    expect_only(check_by_us(path), Flaw::Truncated, Severity::DataLoss);
  }
}

TEST_F(TrapTest, PreallocatedZerosWithAnUnalignedOffsetAreLost) {
  DamagedImage image(make({"write -P 1 0 64k"}));
  image.put(MetadataMap(image).l2.at(0).at, 0x8000000000052a01);
  const CheckReport report = check_by_us(image.path());
  const Finding* const found = find(report, Flaw::Misaligned);
  ASSERT_NE(found, nullptr) << words_of(report);
  EXPECT_EQ(found->severity, Severity::DataLoss);
}

TEST_F(TrapTest, TheUnusedHalfOfAnL2TableIsHarmless) {
  const std::string path = make({}, "cluster_size=64k", "64M");
  must({"qemu-io", "-d", "unmap", "-f", "qcow2", "-c", "write 0 64k", "-c", "discard 0 64k", path});
  DamagedImage image(path);
  image.truncate(0x48000);
  expect_only(check_by_us(path), Flaw::Truncated, Severity::Harmless);
  image.truncate(0x40000 + 1000);
  expect_only(check_by_us(path), Flaw::Truncated, Severity::DataLoss);
}

// A stream claims whole sectors, here some of the plain cluster behind it. qemu-img check -r all counts that.
TEST_F(TrapTest, AStreamMayClaimWhatItDoesNotUse) {
  DamagedImage image(make({"write -c -P 1 0 64k", "write -P 3 64k 64k"}));
  const MetadataMap metadata(image);
  constexpr std::uint64_t kSectors = std::uint64_t{1} << 54;
  const std::uint64_t stream = metadata.l2.at(0).raw & 0x003FFFFFFFFFFFFF;
  ASSERT_EQ(align_down(stream, kCluster) + kCluster, metadata.host(metadata.l2.at(1)));
  image.put(metadata.l2.at(0).at, metadata.l2.at(0).raw + 128 * kSectors);
  EXPECT_EQ(check_by_us(image.path()).outcome(false), Outcome::Mismatch) << "refcount 1 of 2";
  run({"qemu-img", "check", "-q", "-r", "all", image.path()});
  EXPECT_EQ(check_by_qemu(image.path()), QemuVerdict::Clean);
  expect_sound(check_by_us(image.path()));
  expect_sound(check_by_us(image.path(), Payloads::All));
  // If the stream really extends into the data cluster, one of the two has overwritten the other.
  DamagedImage again(image.path());
  const std::uint64_t plain = MetadataMap(again).host(MetadataMap(again).l2.at(1));
  again.put(plain, Bytes(again.size() > stream ? 4096 : 0));
  const Bytes bytes = read_file(again.path());
  again.put(plain, Bytes(bytes.begin() + static_cast<std::ptrdiff_t>(stream),
                         bytes.begin() + static_cast<std::ptrdiff_t>(stream) + 512));
  again.put(MetadataMap(again).l2.at(0).at, (std::uint64_t{1} << 62) | plain);
  run({"qemu-img", "check", "-q", "-r", "all", again.path()});
  const CheckReport report = check_by_us(again.path());
  EXPECT_NE(find(report, Flaw::Overlap), nullptr) << words_of(report);
}

TEST_F(TrapTest, ADamagedLastStreamKeepsTheDecodersReason) {
  for (const char* type : {"zlib", "zstd"}) {
    DamagedImage image(
        make({"write -c -P 1 0 64k"}, fmt::format("cluster_size=64k,compression_type={}", type)));
    const std::uint64_t stream = MetadataMap(image).l2.at(0).raw & 0x003FFFFFFFFFFFFF;
    image.put(stream, 0xFFFFFFFF, 4);
    const Finding found = expect_only(check_by_us(image.path()), Flaw::BadStream, Severity::DataLoss);
    EXPECT_NE(found.what.find("stream: "), std::string::npos) << found.what;
  }
}

}  // namespace
}  // namespace qchain::tests
