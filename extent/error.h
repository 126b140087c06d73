// Failure, as callers see it.
//
// There are two channels: work that cannot go on throws Error; corruption
// that a check was asked to look for is a value and is never thrown.
#pragma once

#include <stdexcept>
#include <string>

#include "extent/export.h"

namespace qchain {

/// How something ends, from the best to the worst: of several verdicts the worst counts.
enum class Outcome {
  Done,          ///< Done, and proven where proof was asked.
  Incomplete,    ///< Something was skipped or could not be checked.
  Inconclusive,  ///< The live side is changing, or is no longer the same job.
  Io,            ///< I/O error; something is unreachable, unreadable or not there.
  BadManifest,   ///< A manifest or its signature is bad.
  Mismatch,      ///< Mismatch or corruption; an identity that does not fit.
  Usage,         ///< What was asked for cannot be: nothing was done.
  Terminated,    ///< Told to stop.
  Interrupted,   ///< Told to stop, by the user.
};

/// The verdict that two verdicts make together.
QCHAIN_API Outcome worse(Outcome a, Outcome b) noexcept;

/// The word for an outcome in messages and reports, such as "mismatch".
QCHAIN_API const char* to_string(Outcome outcome) noexcept;

/// What the caller can change so that the same work succeeds. Programs name their own way to do so.
enum class Remedy {
  None,             ///< Nothing but what the message says.
  ReplaceOutput,    ///< Allow that the file which stands there is replaced.
  ForceShare,       ///< Read it although another program writes to it.
  NameBitmap,       ///< Say which dirty bitmap is meant.
  NameParentPoint,  ///< Say which checkpoint the changes count from.
  LargerClusters,
  ParentIsRaw,  ///< Say that the parent is a raw image.
  SourceIsRaw,  ///< Say that the file is a raw image.
  AllowDataFile,
  AllowBackingRoot,  ///< Allow the directory that the message names.
  AllowOtherExport,
  AllowWritable,  ///< Do not require a read-only export.
  GiveTlsCredentials,
  NameSigningKey,
  Salvage,  ///< Restore what is there all the same.
};

/// Work that cannot go on. what() names the file, the offset and the value, and what to do.
class QCHAIN_API Error : public std::runtime_error {
 public:
  Error(Outcome outcome, const std::string& message, Remedy remedy = Remedy::None)
      : std::runtime_error(message), outcome_(outcome), remedy_(remedy) {}
  Outcome outcome() const noexcept { return outcome_; }
  Remedy remedy() const noexcept { return remedy_; }
  /// The same with more words.
  Error with(const std::string& words) const { return {outcome_, std::string(what()) + words, remedy_}; }

 private:
  Outcome outcome_;
  Remedy remedy_;
};

/// Some bytes cannot be read; others of the same disk may well be. Its outcome is Io.
class QCHAIN_API ReadError : public Error {
 public:
  ReadError(const std::string& message, int error_number);
};

/// An Io error that ends with the words for `error_number`, an errno value.
Error system_error(const std::string& message, int error_number);

}  // namespace qchain
