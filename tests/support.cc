#include "tests/support.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace qchain::tests {

namespace fs = std::filesystem;

Folder::Folder() {
  std::string name = (fs::temp_directory_path() / "qchain-test-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) throw system_error(name, errno);
  // Canonical, as messages about what was found have it.
  path_ = fs::canonical(name);
}

Folder::~Folder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::vector<std::string> Folder::names() const {
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(path_)) {
    names.push_back(entry.path().filename().string());
  }
  std::ranges::sort(names);
  return names;
}

Finished run(const std::vector<std::string>& command) {
  std::vector<char*> arguments;
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);

  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw system_error("pipe", errno);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
  pid_t child = 0;
  const int error = posix_spawnp(&child, arguments.front(), &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  const File output(ends[0], command.front());
  if (error != 0) throw system_error(command.front() + ": cannot be run", error);

  Finished finished;
  char buffer[4096];
  for (;;) {
    const ssize_t n = read(output.descriptor(), buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    finished.output.append(buffer, static_cast<std::size_t>(n));
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  finished.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return finished;
}

std::string must(const std::vector<std::string>& command) {
  const Finished finished = run(command);
  if (finished.status != 0) {
    std::string words;
    for (const std::string& word : command) words += word + ' ';
    ADD_FAILURE() << words << "exits with " << finished.status << ": " << finished.output;
  }
  return finished.output;
}

File create_file(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) throw system_error(path, errno);
  return {descriptor, path};
}

Bytes read_file(const std::string& path) {
  const File file = File::open_to_read(path);
  Bytes bytes(file.size());
  file.read(HostOffset(0), bytes);
  return bytes;
}

void write_file(const std::string& path, const Bytes& bytes) {
  create_file(path).write(HostOffset(0), bytes);
}

Bytes content_by_qemu(const std::string& image) {
  const std::string raw = image + ".content";
  must({"qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw});
  Bytes bytes = read_file(raw);
  fs::remove(raw);
  return bytes;
}

Bytes content_of(BlockDevice& device) {
  Bytes bytes(device.size());
  const ReadRequest request{GuestOffset(0), bytes};
  device.open_reader()->read(std::span(&request, 1));
  return bytes;
}

std::vector<Mapping> whole_map(const Chain& chain) {
  std::vector<Mapping> all;
  for (GuestRange rest = guest_range(0, chain.size()); !rest.empty();) {
    const std::vector<Mapping> answer = chain.map(rest);
    for (const Mapping& mapping : answer) {
      EXPECT_FALSE(mapping.range.empty());
      EXPECT_EQ(mapping.range.begin, rest.begin);
      rest.begin = mapping.range.end;
      all.push_back(mapping);
    }
    if (answer.empty()) {
      ADD_FAILURE() << "no answer for " << to_string(rest);
      break;
    }
  }
  return all;
}

std::string first_difference(const Bytes& a, const Bytes& b) {
  if (a.size() != b.size()) {
    return std::to_string(a.size()) + " bytes against " + std::to_string(b.size());
  }
  const auto [at, other] = std::ranges::mismatch(a, b);
  if (at == a.end()) return {};
  return "byte " + std::to_string(at - a.begin()) + " is " + std::to_string(std::to_integer<int>(*at)) +
         " against " + std::to_string(std::to_integer<int>(*other));
}

Outcome outcome_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.outcome();
  }
  return Outcome::Done;
}

testing::AssertionResult is_merged(const Extents& extents, const GuestRange& whole) {
  GuestOffset at = whole.begin;
  for (std::size_t i = 0; i < extents.size(); ++i) {
    const Extent& extent = extents[i];
    if (extent.range.begin != at) {
      return testing::AssertionFailure() << "a gap before " << to_string(extent.range);
    }
    if (extent.range.empty()) {
      return testing::AssertionFailure() << to_string(extent.range) << " is empty";
    }
    if (i > 0 && extents[i - 1].kind == extent.kind) {
      return testing::AssertionFailure() << to_string(extent.range) << " could be merged";
    }
    at = extent.range.end;
  }
  if (at != whole.end) return testing::AssertionFailure() << "ends at " << at.bytes();
  return testing::AssertionSuccess();
}

Disk random_disk(Random& random, std::uint64_t size, std::uint64_t grain, Position position) {
  Disk disk{Bytes(size), {}};
  for (std::uint64_t at = 0; at < size;) {
    const std::uint64_t length = std::min(size - at, grain * random.between(1, 8));
    const Kind kind = random.one_of({Kind::Inherit, Kind::Zero, Kind::Data, Kind::Data});
    const std::span<std::byte> bytes = std::span(disk.bytes).subspan(at, length);
    if (kind == Kind::Data || (kind == Kind::Inherit && position == Position::Overlay)) {
      // A quarter of the data turns out to be zeros, and a quarter has one byte that is not.
      switch (random.below(4)) {
        case 0:
          break;
        case 1:
          bytes[random.below(length)] = std::byte{1};
          break;
        default:
          random.fill(bytes);
      }
    }
    // Not merged: a device may report adjacent extents of the same kind.
    disk.extents.push_back({guest_range(at, length), kind});
    at += length;
  }
  return disk;
}

Extents stored_by_law(const Disk& disk, std::uint64_t unit, Position position) {
  Extents stored;
  const std::uint64_t size = disk.bytes.size();
  for (std::uint64_t at = 0; at < size; at += unit) {
    const GuestRange cluster = guest_range(at, std::min(unit, size - at));
    bool has[3] = {};
    for (const Extent& extent : disk.extents) {
      if (!intersect(extent.range, cluster).empty()) has[static_cast<int>(extent.kind)] = true;
    }
    // A last sector that the disk does not fill is data in an overlay: zeros have to follow it.
    if (position == Position::Overlay && cluster.end.bytes() == size && size % kSectorSize != 0) {
      has[static_cast<int>(Kind::Data)] = true;
    }
    const bool zeros = std::all_of(disk.bytes.begin() + static_cast<std::ptrdiff_t>(at),
                                   disk.bytes.begin() + static_cast<std::ptrdiff_t>(cluster.end.bytes()),
                                   [](std::byte byte) { return byte == std::byte{0}; });
    const bool data = has[static_cast<int>(Kind::Data)];
    const bool zero = has[static_cast<int>(Kind::Zero)];
    const bool inherit = has[static_cast<int>(Kind::Inherit)];
    Kind kind = Kind::Inherit;
    if (position == Position::Bottom) {
      kind = data && !zeros ? Kind::Data : Kind::Inherit;
    } else if (data || (zero && inherit)) {
      kind = zeros ? Kind::Zero : Kind::Data;
    } else if (zero) {
      kind = Kind::Zero;
    }
    const std::uint64_t end = std::min(at + unit, align_up(size, kSectorSize));
    append(stored, {{GuestOffset(at), GuestOffset(end)}, kind});
  }
  return stored;
}

WrittenLayer write_image(BlockDevice& device, const std::string& path, const LayerOptions& options,
                         const std::string& backing, const std::string& backing_format) {
  const File file = create_file(path);
  WrittenLayer written = write_layer(device, file, options);
  if (!backing.empty()) {
    written.header.backing_name = backing;
    written.header.backing_format = backing_format;
  }
  write_header(file, written.header);
  return written;
}

}  // namespace qchain::tests
