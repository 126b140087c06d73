// Files, their publication, and the search for zeros.
#include "extent/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <stdexcept>

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

// Extents of a sparse file: what they call zero has to be zero, and what was never written is
// found.
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
      std::ranges::fill(buffer, std::byte{0xFF});  // what is around does not count
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

class PublicationTest : public FileTest {
 protected:
  std::string path = folder / "out";
  std::string partial = path + ".partial";
  Bytes content = any_bytes(1000);
};

TEST_F(PublicationTest, AppearsWhenItIsPublished) {
  {
    Publication publication(path, Existing::Refuse);
    EXPECT_EQ(publication.path(), path);
    publication.file().write(HostOffset(0), content);
    publication.sync();
    EXPECT_EQ(folder.names(), std::vector<std::string>{"out.partial"});
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
  EXPECT_EQ(outcome_of([&] { Publication(path, Existing::Refuse); }), Outcome::Usage);
  EXPECT_EQ(folder.names(), std::vector<std::string>{"out"});
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

TEST_F(PublicationTest, ReplacesAnExistingFileAtOnce) {
  write_file(path, any_bytes(5000));
  const File before = File::open_to_read(path);
  Publication publication(path, Existing::Replace);
  publication.file().write(HostOffset(0), content);
  publication.publish();
  EXPECT_EQ(read_file(path), content);
  EXPECT_EQ(before.size(), 5000U) << "who has the old file open keeps it";
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

TEST_F(PublicationTest, TakesOverWhatACrashLeft) {
  write_file(partial, any_bytes(5000));
  Publication publication(path, Existing::Refuse);
  EXPECT_EQ(publication.file().size(), 0U);
  publication.file().write(HostOffset(0), content);
  publication.publish();
  EXPECT_EQ(folder.names(), std::vector<std::string>{"out"});
  EXPECT_EQ(read_file(path), content);
}

// A planted link must not make us truncate what it points at.
TEST_F(PublicationTest, DoesNotFollowALinkInPlaceOfThePartialFile) {
  write_file(folder / "precious", content);
  std::filesystem::create_symlink("precious", partial);
  EXPECT_EQ(outcome_of([&] { Publication(path, Existing::Refuse); }), Outcome::Io);
  EXPECT_EQ(read_file(folder / "precious"), content);
}

TEST_F(PublicationTest, WithoutItsFolderItIsAnIoError) {
  EXPECT_EQ(outcome_of([&] { Publication(folder / "absent/out", Existing::Refuse); }), Outcome::Io);
}

}  // namespace
}  // namespace qchain::tests
