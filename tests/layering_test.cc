// Includes go one way, extent <- qcow2 <- verify <- cli, and each third-party header is included in one
// source.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <regex>
#include <string>
#include <vector>

namespace qchain::tests {
namespace {

namespace fs = std::filesystem;

struct Include {
  std::string file;  // such as "extent/file.cc"
  std::string name;  // such as "extent/file.h" or "fcntl.h"
};

const std::vector<std::string> kLibraries{"extent", "qcow2", "verify",
                                          "cli"};  // each may include those before it

// Calls `see` with every line of the sources below `folder`.
void for_each_line(const std::string& folder,
                   const std::function<void(const std::string&, const std::string&)>& see) {
  for (const auto& entry : fs::recursive_directory_iterator(fs::path(QCHAIN_SOURCE_DIR) / folder)) {
    const std::string extension = entry.path().extension().string();
    if (extension != ".h" && extension != ".cc") continue;
    std::ifstream in(entry.path());
    std::string line;
    while (std::getline(in, line)) see(entry.path().string(), line);
  }
}

std::vector<Include> includes_of_libraries() {
  static const std::regex kInclude("^\\s*#\\s*include\\s*[<\"]([^>\"]+)[>\"]");
  std::vector<Include> includes;
  for (const std::string& library : kLibraries) {
    for_each_line(library, [&](const std::string& file, const std::string& line) {
      std::smatch match;
      if (!std::regex_search(line, match, kInclude)) return;
      includes.push_back({fs::relative(file, QCHAIN_SOURCE_DIR).string(), match[1]});
    });
  }
  return includes;
}

std::string first_folder(const std::string& path) { return path.substr(0, path.find('/')); }

TEST(LayeringTest, IncludesGoOneWay) {
  std::map<std::string, int> seen;
  for (const Include& include : includes_of_libraries()) {
    const auto from = std::ranges::find(kLibraries, first_folder(include.file));
    const auto to = std::ranges::find(kLibraries, first_folder(include.name));
    ++seen[*from];
    EXPECT_NE(first_folder(include.name), "tests") << include.file;
    if (to == kLibraries.end()) continue;
    EXPECT_LE(to - from, 0) << include.file << " includes " << include.name;
    EXPECT_TRUE(fs::exists(fs::path(QCHAIN_SOURCE_DIR) / include.name)) << include.name;
  }
  for (const std::string& library : kLibraries) EXPECT_GT(seen[library], 0) << library << " was checked";
}

// The installed library must not depend on the command line.
TEST(LayeringTest, TheApiIncludesNothingOfTheCommandLine) {
  int seen = 0;
  for (const Include& include : includes_of_libraries()) {
    if (!include.file.starts_with("cli/api/") || !include.name.starts_with("cli/")) continue;
    ++seen;
    EXPECT_TRUE(include.name.starts_with("cli/api/")) << include.file << " includes " << include.name;
  }
  EXPECT_GT(seen, 0);
}

TEST(LayeringTest, LibrariesPrintNothingAndNeverExit) {
  static const std::regex kForbidden(
      R"(\b(f?puts|f?printf|exit|_Exit|abort|signal|sigaction)\(|std::c(out|err)\b)");
  for (const char* const folder : {"extent", "qcow2", "verify", "cli/api"}) {
    for_each_line(folder, [](const std::string& file, const std::string& line) {
      EXPECT_FALSE(std::regex_search(line, kForbidden)) << file << ": " << line;
    });
  }
}

TEST(LayeringTest, LibrariesNameNoOption) {
  static const std::regex kOption(R"("[^"]*--[a-z])");
  for (const char* const folder : {"extent", "qcow2", "verify", "cli/api"}) {
    for_each_line(folder, [](const std::string& file, const std::string& line) {
      EXPECT_FALSE(std::regex_search(line, kOption)) << file << ": " << line;
    });
  }
}

TEST(LayeringTest, AThirdPartyHeaderIsInOneSource) {
  // OpenSSL is used in two sources, for signatures and for digests; both include EVP.
  for (const std::string library :
       {"libnbd.h", "openssl/pem.h", "zlib.h", "zstd.h", "xxhash.h", "libvirt/", "pugixml.hpp", "boost/"}) {
    std::vector<std::string> files;
    for (const Include& include : includes_of_libraries()) {
      if (!include.name.starts_with(library)) continue;
      EXPECT_TRUE(include.file.ends_with(".cc")) << include.file << " exposes " << library;
      if (std::ranges::find(files, include.file) == files.end()) files.push_back(include.file);
    }
    EXPECT_EQ(files.size(), 1U) << library << " is in " << testing::PrintToString(files);
  }
}

}  // namespace
}  // namespace qchain::tests
