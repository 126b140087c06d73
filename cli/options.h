#pragma once

#include <boost/program_options/options_description.hpp>
#include <boost/program_options/positional_options.hpp>
#include <boost/program_options/variables_map.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/api/qchain.h"
#include "cli/job_owner.h"
#include "cli/progress.h"
#include "qcow2/chain.h"

namespace qchain {

/// What every command takes.
struct CommonOptions {
  bool json = false;
  ProgressStyle progress = ProgressStyle::Auto;
  OpenOptions open;
};

/// qcow2 or raw. Throws Error (Usage), naming `option`, for another name.
ImageFormat image_format_named(const std::string& name, const char* option);

/// The command line of one command: options are added, the words are parsed, values are taken.
class CommandLine {
 public:
  /// `usage` is what stands behind "qchain COMMAND".
  CommandLine(std::string command, std::string usage, std::string summary);

  boost::program_options::options_description_easy_init add();
  /// The next positional argument; shown in `usage`, not among the options.
  void add_positional(const char* name, int count = 1);
  void add_nbd();
  void add_owner();

  /// Throws Error (Usage). False where --help was asked for and printed.
  bool parse(const std::vector<std::string>& words);

  bool has(const char* name) const;
  std::string text(const char* name, const std::string& otherwise = {}) const;
  std::vector<std::string> texts(const char* name) const;
  std::optional<std::uint64_t> size(const char* name) const;
  /// A positional argument that has to be there.
  std::string required(const char* name) const;

  CommonOptions common() const;
  NbdOptions nbd() const;
  OwnerOptions owner() const;

 private:
  std::string command_;
  std::string usage_;
  std::string summary_;
  boost::program_options::options_description visible_;
  boost::program_options::options_description hidden_;
  boost::program_options::positional_options_description positional_;
  boost::program_options::variables_map values_;
};

}  // namespace qchain
