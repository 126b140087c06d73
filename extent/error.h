// Errors, as callers see them.
//
// Work that cannot go on throws Error; so does a reader of a disk where corruption is in its way (outcome
// Mismatch). Functions that look for corruption return it as values: survey(), check, proofs, comparisons.
#pragma once

#include <stdexcept>
#include <string>

#include "extent/export.h"

namespace qchain {

/// The result of an operation, from best to worst: of several results the worst counts.
enum class Outcome {
  Done,          ///< Success; verified where verification was requested.
  Incomplete,    ///< Something was skipped or could not be checked.
  Inconclusive,  ///< The live side is changing, or is no longer the same job.
  Io,            ///< I/O error; something is unreachable, unreadable or missing.
  BadManifest,   ///< A manifest or its signature is invalid.
  Mismatch,      ///< Corruption, or a digest or identity that does not match.
  Usage,         ///< The request is invalid or impossible; nothing was done.
  Terminated,    ///< Cancelled.
  Interrupted,   ///< Cancelled by the user.
};

/// The worse of two outcomes.
QCHAIN_API Outcome worse(Outcome a, Outcome b) noexcept;

/// The word for an outcome in messages and reports, such as "mismatch".
QCHAIN_API const char* to_string(Outcome outcome) noexcept;

/// What the caller can change so that the same work succeeds. Programs add the name of their own option.
enum class Remedy {
  None,             ///< Nothing but what the message says.
  ReplaceOutput,    ///< Allow replacing the existing file.
  ForceShare,       ///< Read the image although another program writes to it.
  NameBitmap,       ///< Name the dirty bitmap to use.
  NameParentPoint,  ///< Name the checkpoint that the changes count from.
  LargerClusters,
  ParentIsRaw,  ///< Say that the parent is a raw image.
  SourceIsRaw,  ///< Say that the file is a raw image.
  AllowDataFile,
  AllowBackingRoot,  ///< Allow the directory that the message names.
  AllowOtherExport,
  AllowWritable,  ///< Do not require a read-only export.
  GiveTlsCredentials,
  NameSigningKey,
  TrustKey,             ///< Trust the key with which it is signed.
  TrustOrSignUnproven,  ///< Trust the keys of the layers below, or sign all the same.
  Seal,                 ///< Seal the layer: write what its manifest lacks.
  SealAgain,            ///< Seal the layer, so that it can be proven block by block.
  VerifyAndSeal,        ///< Verify the content of the layer; if it is the recorded one, seal the layer.
  AcceptChanged,        ///< Seal content that is not the recorded one, if it was changed on purpose.
  Salvage,              ///< Restore what can be read.
};

/// Work that cannot go on. what() names the file or URI and, where there are any, offset, value and remedy.
class QCHAIN_API Error : public std::runtime_error {
 public:
  Error(Outcome outcome, const std::string& message, Remedy remedy = Remedy::None)
      : std::runtime_error(message), outcome_(outcome), remedy_(remedy) {}
  Outcome outcome() const noexcept { return outcome_; }
  Remedy remedy() const noexcept { return remedy_; }
  /// The same error, with `text` appended to its message.
  Error with(const std::string& text) const { return {outcome_, std::string(what()) + text, remedy_}; }

 private:
  Outcome outcome_;
  Remedy remedy_;
};

/// Some bytes cannot be read; others of the same disk may be readable. Its outcome is Io.
class QCHAIN_API ReadError : public Error {
 public:
  ReadError(const std::string& message, int error_number);
};

/// Whether other bytes of the same disk may be readable still: a ReadError, or corrupt metadata.
bool is_local(const Error& error) noexcept;

/// An Io error whose message ends with the text for `error_number`, an errno value.
Error system_error(const std::string& message, int error_number);

}  // namespace qchain
