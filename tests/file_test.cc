// Files, their publication, and the search for zeros.
#include "extent/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <stdexcept>

#include "extent/image_lock.h"
#include "extent/publication.h"
#include "extent/raw_file.h"
#include "extent/zero.h"
#include "tests/random.h"
#include "tests/support.h"

namespace qchain::tests {
namespace {

class FileTest : public RandomTest {
 protected:
  Bytes any_bytes(std::size_t size) {
    Bytes bytes(size);
    random.fill(bytes);
    return bytes;
  }

  Folder folder;
};

TEST_F(FileTest, WritesAreWhatIsRead) {
  const std::string path = folder / "file";
  const File file = create_file(path);
  Bytes model;
  for (int round = 0; round < 300; ++round) {
    const std::uint64_t offset = random.below(20000);
    Bytes bytes = any_bytes(random.below(3000));
    if (random.chance(50)) {
      file.write(HostOffset(offset), bytes);
    } else {
      // In parts, some of them empty; now and then more than one system call takes.
      std::vector<iovec> parts;
      const std::size_t longest = random.one_of<std::size_t>({1, 700});
      for (std::size_t at = 0; at < bytes.size();) {
        const std::size_t length = std::min(bytes.size() - at, random.between(0, longest));
        parts.push_back({bytes.data() + at, length});
        at += length;
      }
      file.write(HostOffset(offset), parts);
    }
    if (!bytes.empty()) model.resize(std::max(model.size(), offset + bytes.size()));
    std::ranges::copy(bytes, model.begin() + static_cast<std::ptrdiff_t>(offset));
  }
  EXPECT_EQ(first_difference(read_file(path), model), "");
  EXPECT_EQ(file.size(), model.size());

  Bytes some(500);
  EXPECT_EQ(file.read_at_most(HostOffset(model.size() - 100), some), 100U);
  // No file reaches past 2^63, and what an image points at may be anywhere.
  for (const std::uint64_t past : {std::uint64_t{model.size()} + 100, (std::uint64_t{1} << 63) - 1,
                                   std::uint64_t{1} << 63, ~std::uint64_t{0}}) {
    EXPECT_EQ(file.read_at_most(HostOffset(past), some), 0U) << past;
  }
  EXPECT_EQ(outcome_of([&] { file.read(HostOffset(model.size() - 100), some); }), Outcome::Mismatch);
}

TEST_F(FileTest, WrittenZerosAreZerosWhateverWasThere) {
  const File file = create_file(folder / "file");
  Bytes model = any_bytes(300000);
  file.write(HostOffset(0), model);
  for (int round = 0; round < 100; ++round) {
    const std::uint64_t offset = random.below(model.size());
    const std::uint64_t length = random.below(model.size() - offset + 1) / random.between(1, 30);
    file.write_zeros(HostOffset(offset), length);
    std::ranges::fill(std::span(model).subspan(offset, length), std::byte{0});
    const std::uint64_t at = random.below(model.size());
    Bytes bytes = any_bytes(std::min<std::uint64_t>(random.below(20000), model.size() - at));
    file.write(HostOffset(at), bytes);
    std::ranges::copy(bytes, model.begin() + static_cast<std::ptrdiff_t>(at));
  }
  EXPECT_EQ(first_difference(read_file(folder / "file"), model), "");
}

// A pipe takes no holes; the zeros have to come through it.
TEST_F(FileTest, AppendWritesThroughAPipe) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const File reading(ends[0], "reading");
  const Bytes bytes = any_bytes(5000);
  {
    const File writing(ends[1], "writing");
    writing.append(bytes);
  }
  Bytes got(bytes.size() + 1);
  EXPECT_EQ(::read(reading.descriptor(), got.data(), got.size()), static_cast<ssize_t>(bytes.size()));
  got.resize(bytes.size());
  EXPECT_EQ(got, bytes);
}

TEST_F(FileTest, FailuresAreIoErrorsThatNameThePath) {
  const std::string path = folder / "absent";
  try {
    File::open_to_read(path);
    ADD_FAILURE() << "opened";
  } catch (const Error& error) {
    EXPECT_EQ(error.outcome(), Outcome::Io);
    EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
  }
  write_file(path, any_bytes(10));
  const File read_only = File::open_to_read(path);
  EXPECT_EQ(outcome_of([&] { read_only.write(HostOffset(0), any_bytes(1)); }), Outcome::Io);
  EXPECT_EQ(outcome_of([&] { read_only.write_zeros(HostOffset(0), 1); }), Outcome::Io);
  EXPECT_EQ(outcome_of([&] { read_only.resize(0); }), Outcome::Io);
  EXPECT_EQ(outcome_of([&] { read_only.append(any_bytes(1)); }), Outcome::Io);
}

TEST_F(FileTest, IdentityIsTheFilesWhateverItsName) {
  write_file(folder / "a", any_bytes(1));
  write_file(folder / "b", any_bytes(1));
  std::filesystem::create_hard_link(folder / "a", folder / "c");
  std::filesystem::create_symlink("a", folder / "d");
  const auto identity = [&](const char* name) { return File::open_to_read(folder / name).identity(); };
  EXPECT_EQ(identity("a"), identity("c"));
  EXPECT_EQ(identity("a"), identity("d"));
  EXPECT_NE(identity("a"), identity("b"));
}

TEST_F(FileTest, AMovedFileHasOneOwner) {
  File a = create_file(folder / "a");
  File b(std::move(a));
  EXPECT_TRUE(b.is_regular());
  File c = create_file(folder / "c");
  c = std::move(b);
  EXPECT_EQ(c.path(), folder / "a");
  EXPECT_TRUE(c.is_regular());
  EXPECT_FALSE(c.is_block_device());
}

// Extents of a sparse file: what they call zero has to be zero, and what was never written is found.
TEST_F(FileTest, HolesOfARawFileAreZeros) {
  constexpr std::uint64_t kSize = 4 << 20;
  const File file = create_file(folder / "sparse");
  file.resize(kSize);
  Bytes model(kSize);
  for (int i = 0; i < 8; ++i) {
    const std::uint64_t at = align_down(random.below(kSize - 70000), 4096);
    const Bytes bytes = any_bytes(random.between(1, 70000));
    file.write(HostOffset(at), bytes);
    std::ranges::copy(bytes, model.begin() + static_cast<std::ptrdiff_t>(at));
  }
  RawFile raw(File::open_to_read(folder / "sparse"));
  const Extents extents = collect(extents_of(raw));
  ASSERT_TRUE(is_merged(extents, guest_range(0, kSize)));
  std::uint64_t zero = 0;
  for (const Extent& extent : extents) {
    if (extent.kind == Kind::Data) continue;
    EXPECT_EQ(extent.kind, Kind::Zero);
    EXPECT_TRUE(is_zero(std::span(model).subspan(extent.range.begin.bytes(), extent.range.length())));
    zero += extent.range.length();
  }
  EXPECT_GT(zero, kSize / 2) << "the holes are found";
  EXPECT_EQ(first_difference(content_of(raw), model), "");
  // From any place on.
  for (int i = 0; i < 100; ++i) {
    const std::uint64_t at = random.below(kSize);
    const GuestRange range = guest_range(at, random.between(1, kSize - at));
    ASSERT_EQ(collect(extents_of(raw, range)), collect(clip(stream(extents), range)));
  }
}

TEST_F(FileTest, IsZeroLooksAtEveryByte) {
  Bytes buffer(64 + 160);
  for (std::size_t begin = 0; begin < 64; ++begin) {
    for (std::size_t length = 0; length <= 150; ++length) {
      std::ranges::fill(buffer, std::byte{0xFF});  // bytes around it do not count
      const std::span<std::byte> bytes = std::span(buffer).subspan(begin, length);
      std::ranges::fill(bytes, std::byte{0});
      ASSERT_TRUE(is_zero(bytes)) << begin << ' ' << length;
      if (length == 0) continue;
      // The borders of what is compared at a time, and one place more.
      for (const std::size_t at : {std::size_t{0}, std::size_t{15}, std::size_t{16}, std::size_t{17},
                                   std::size_t{63}, std::size_t{64}, length - 1, length / 2}) {
        if (at >= length) continue;
        bytes[at] = static_cast<std::byte>(1 << (at % 8));
        ASSERT_FALSE(is_zero(bytes)) << begin << ' ' << length << ' ' << at;
        bytes[at] = std::byte{0};
      }
    }
  }
}

// By default a file has no name before it is published. Where the file system cannot do that, it has a random
// one.
class PublicationTest : public FileTest {
 protected:
  std::string path = folder / "out";
  Bytes content = any_bytes(1000);
  std::vector<std::string> warnings;
  Warn warn = [this](const std::string& message) { warnings.push_back(message); };
};

TEST_F(PublicationTest, AppearsWhenItIsPublished) {
  {
    Publication publication(path, Existing::Refuse);
    EXPECT_EQ(publication.path(), path);
    publication.file().write(HostOffset(0), content);
    publication.sync();
    EXPECT_EQ(read_file(publication.current_path()), content);
    EXPECT_TRUE(folder.names().empty());
    publication.publish();
    EXPECT_EQ(folder.names(), std::vector<std::string>{"out"});
  }
  EXPECT_EQ(folder.names(), std::vector<std::string>{"out"});
  EXPECT_EQ(read_file(path), content);
}

TEST_F(PublicationTest, LeavesNothingAfterAnException) {
  try {
    Publication publication(path, Existing::Refuse);
    publication.file().write(HostOffset(0), content);
    throw std::runtime_error("in the middle");
  } catch (const std::runtime_error&) {
  }
  EXPECT_TRUE(folder.names().empty());
}

TEST_F(PublicationTest, LeavesTheOldFileAfterAnException) {
  write_file(path, content);
  try {
    Publication publication(path, Existing::Replace);
    publication.file().write(HostOffset(0), any_bytes(10));
    throw std::runtime_error("in the middle");
  } catch (const std::runtime_error&) {
  }
  EXPECT_EQ(folder.names(), std::vector<std::string>{"out"});
  EXPECT_EQ(read_file(path), content);
}

TEST_F(PublicationTest, RefusesAnExistingName) {
  write_file(path, content);
  EXPECT_EQ(outcome_of([&] { Publication(path, Existing::Refuse); }), Outcome::Usage);
  EXPECT_EQ(folder.names(), std::vector<std::string>{"out"});
  EXPECT_EQ(read_file(path), content);
}

TEST_F(PublicationTest, RefusesALinkThatPointsNowhere) {
  std::filesystem::create_symlink("nowhere", path);
  for (const Existing existing : {Existing::Refuse, Existing::Replace}) {
    EXPECT_EQ(outcome_of([&] { Publication(path, existing); }), Outcome::Usage);
  }
  EXPECT_EQ(folder.names(), std::vector<std::string>{"out"});
}

TEST_F(PublicationTest, FollowsALinkToAFile) {
  write_file(folder / "target", any_bytes(5));
  std::filesystem::create_symlink("target", path);
  EXPECT_EQ(outcome_of([&] { Publication(path, Existing::Refuse); }), Outcome::Usage);
  Publication publication(path, Existing::Replace);
  publication.file().write(HostOffset(0), content);
  publication.publish();
  EXPECT_TRUE(std::filesystem::is_symlink(path));
  EXPECT_EQ(read_file(folder / "target"), content);
}

TEST_F(PublicationTest, ReplacesNothingButRegularFiles) {
  std::filesystem::create_directory(folder / "directory");
  ASSERT_EQ(mkfifo((folder / "fifo").c_str(), 0600), 0);
  std::filesystem::create_symlink("/dev/null", folder / "link");
  for (const char* const name : {"directory", "fifo", "link"}) {
    const auto before = std::filesystem::symlink_status(folder / name).type();
    EXPECT_EQ(outcome_of([&] { Publication(folder / name, Existing::Replace); }), Outcome::Usage) << name;
    EXPECT_EQ(std::filesystem::symlink_status(folder / name).type(), before) << name;
  }
}

TEST_F(PublicationTest, RefusesANameThatWasTakenMeanwhile) {
  EXPECT_EQ(outcome_of([&] {
              Publication publication(path, Existing::Refuse);
              write_file(path, content);
              publication.publish();
            }),
            Outcome::Usage);
  EXPECT_EQ(folder.names(), std::vector<std::string>{"out"});
  EXPECT_EQ(read_file(path), content);
}

TEST_F(PublicationTest, RefusesToReplaceAnotherFileThanAtFirst) {
  write_file(path, any_bytes(5));
  EXPECT_EQ(outcome_of([&] {
              Publication publication(path, Existing::Replace);
              write_file(folder / "other", content);
              std::filesystem::rename(folder / "other", path);
              publication.publish();
            }),
            Outcome::Usage);
  EXPECT_EQ(folder.names(), std::vector<std::string>{"out"});
  EXPECT_EQ(read_file(path), content);
}

TEST_F(PublicationTest, ReplacesAnExistingFileAtOnce) {
  write_file(path, any_bytes(5000));
  ASSERT_EQ(chmod(path.c_str(), 0640), 0);
  const bool has_attributes = setxattr(path.c_str(), "user.test", "kept", 4, 0) == 0;
  const File before = File::open_to_read(path);
  Publication publication(path, Existing::Replace, warn);
  publication.file().write(HostOffset(0), content);
  publication.publish();
  EXPECT_EQ(read_file(path), content);
  EXPECT_EQ(before.size(), 5000U) << "who has the old file open keeps it";
  struct stat status {};
  ASSERT_EQ(stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0640U);
  std::array<char, 4> value{};
  EXPECT_EQ(getxattr(path.c_str(), "user.test", value.data(), value.size()), has_attributes ? 4 : -1);
  EXPECT_TRUE(warnings.empty());
  EXPECT_EQ(folder.names(), std::vector<std::string>{"out"});
}

TEST_F(PublicationTest, RefusesToReplaceWhatIsInUse) {
  write_file(path, content);
  const File guest(open(path.c_str(), O_RDWR | O_CLOEXEC), path);
  lock_image(guest, Sharing::Write);
  EXPECT_EQ(outcome_of([&] { Publication(path, Existing::Replace); }), Outcome::Io);
  EXPECT_EQ(read_file(path), content);
}

TEST_F(PublicationTest, RefusesASecondWriter) {
  Publication first(path, Existing::Replace);
  first.file().write(HostOffset(0), content);
  EXPECT_EQ(outcome_of([&] { Publication(path, Existing::Replace); }), Outcome::Usage);
  EXPECT_EQ(first.file().size(), content.size()) << "the second one has not touched it";
  first.publish();
  EXPECT_EQ(read_file(path), content);
  // Once it is published the name is free for a new one, though `first` still lives.
  Publication third(path, Existing::Replace);
  EXPECT_EQ(read_file(path), content);
}

TEST_F(PublicationTest, RemovesWhatACrashLeft) {
  write_file(folder / "out.0123456789abcdef.partial", any_bytes(5000));
  Publication publication(path, Existing::Refuse, warn);
  EXPECT_TRUE(folder.names().empty());
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_NE(warnings[0].find("out.0123456789abcdef.partial"), std::string::npos);
}

TEST_F(PublicationTest, DoesNotRemoveFilesOfOthers) {
  const std::vector<std::string> kept{"out.0123456789abcde.partial",
                                      "out.0123456789abcdef.partial",
                                      "out.0123456789abcdef.partial2",
                                      "out.123456789abcdef0.partial",
                                      "out.partial",
                                      "out2.0123456789abcdef.partial"};
  for (const std::string& name : kept) write_file(folder / name, content);
  std::filesystem::create_hard_link(folder / "out.0123456789abcdef.partial", folder / "precious");
  const File writer = File::open_to_read(folder / "out.123456789abcdef0.partial");
  ASSERT_EQ(flock(writer.descriptor(), LOCK_EX | LOCK_NB), 0);
  Publication publication(path, Existing::Refuse, warn);
  publication.publish();
  for (const std::string& name : kept) EXPECT_EQ(read_file(folder / name), content) << name;
  EXPECT_EQ(read_file(folder / "precious"), content);
}

TEST_F(PublicationTest, WithoutItsFolderItIsAnIoError) {
  EXPECT_EQ(outcome_of([&] { Publication(folder / "absent/out", Existing::Refuse); }), Outcome::Io);
}

}  // namespace
}  // namespace qchain::tests
